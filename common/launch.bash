# What the launch scripts of all backbones share: how threads wait, which interpreter runs.
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
