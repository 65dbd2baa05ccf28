# What the run scripts share: arguments, the output folder with a copy of the code.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/launch.bash"

# start TASK SCRIPT GPU NAME …: go to LXMERT/, choose the device, name the folder snap/TASK/NAME.
start() {
    if [ $# -lt 4 ] || [ -z "$3" ] || [[ "$4" == -* ]]; then
        if [[ "${4:-}" == --* && "$4" != --help ]]; then echo "error: NAME is missing before $4" >&2; fi
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$2" >&2
        exit 2
    fi
    local task="$1" script name="$4" gpu="$3"
    PYTHON="$(interpreter "${PYTHON:-}")"
    script="$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"
    cd "$(dirname "$script")/.."
    if [ "$gpu" != cpu ]; then export CUDA_VISIBLE_DEVICES="$gpu"; fi
    PYTHON="${PYTHON:-$([ -x ../.venv/bin/python ] && echo ../.venv/bin/python || echo python3)}"
    OUTPUT="snap/$task/$name"
    SCRIPT="$script"
}

# keep_code FLAG …: copy the code to the output folder, unless a run is there that stays as it is.
keep_code() {
    if [[ " $* " != *" --overwrite "* ]] && { [ -e "$OUTPUT/LAST.safetensors" ] ||
        compgen -G "$OUTPUT/seed_*/LAST.safetensors" > /dev/null; }; then return; fi
    rm -rf "$OUTPUT/src"
    mkdir -p "$OUTPUT/src"
    cp -r src/. ../common "$OUTPUT/src/"
    cp "$SCRIPT" "$OUTPUT/run.bash"
    find "$OUTPUT/src" -name __pycache__ -prune -exec rm -rf {} +
}
