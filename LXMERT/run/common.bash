# What the run scripts share: arguments, the interpreter, the output folder with a copy of the code.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

# interpreter PATH: the absolute form of a path that is relative to this folder; a bare name stays.
# A link to the interpreter of a virtual environment is followed, since Python would not find it.
interpreter() {
    local path="$1" target
    case "$path" in
        /* | "") ;;
        */*) path="$PWD/$path" ;;
    esac
    if [ -L "$path" ] && [ ! -e "$(dirname "$path")/../pyvenv.cfg" ]; then
        target="$(readlink "$path")"
        if [ -e "$(dirname "$target")/../pyvenv.cfg" ]; then path="$target"; fi
    fi
    echo "$path"
}

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
