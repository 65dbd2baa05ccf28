# What the launch scripts share: the arguments of the script.
source "$(dirname "${BASH_SOURCE[0]}")/../../common/launch.bash"

# usage SCRIPT: print the comment at the top of a script and stop.
usage() {
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$1" >&2
    exit 2
}

# prepare SCRIPT COUNT ARGUMENT …: go to VLBERT/ and set COMMAND, if there are COUNT arguments: the
# training script, its config, the model folder; then further flags. --help may take the place of
# config and folder.
prepare() {
    local launcher="$1" count="$2"
    shift 2
    if [ $# -ge 2 ] && { [ "$2" = --help ] || [ "$2" = -h ]; }; then
        COMMAND=("$1" --help)
    elif [ $# -lt "$count" ] || [[ "$2" == -* || "$3" == -* ]]; then
        usage "$launcher"
    else
        COMMAND=("$1" --cfg "$2" --model-dir "$3" "${@:4}")
    fi
    PYTHON="$(interpreter "${PYTHON:-}")"
    cd "$(dirname "$launcher")/.."
    PYTHON="${PYTHON:-$([ -x ../.venv/bin/python ] && echo ../.venv/bin/python || echo python3)}"
}
