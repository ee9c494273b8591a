# The Python that is used, and .venv with the extras that are asked for; sourced by quickstart, test and container-setup.
#   find_python                 prints python3.11 or python3.12, whichever is there; PYTHON names another
#   make_environment EXTRAS     e.g. make_environment build,serve
# make_environment does nothing when .venv already has them for this pyproject.toml, constraints.txt and the sources
# that are compiled.

find_python() {
    local python=${PYTHON:-} candidate
    for candidate in python3.11 python3.12 python3; do
        if [ -z "$python" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            python=$candidate
        fi
    done
    if [ -z "$python" ]; then
        echo "error: Python 3.11 or 3.12 is needed and was not found; install one, or set PYTHON=/path/to/it" >&2
        return 1
    fi
    echo "$python"
}

make_environment() {
    local extras=$1 python
    python=$(find_python)
    local stamp
    stamp=$(cat pyproject.toml constraints.txt hermes_deploy/kernels/src/* | sha256sum | cut -c1-16)
    if [ -f ".venv/.has-dev-$stamp" ] || [ -f ".venv/.has-$extras-$stamp" ]; then
        return 0
    fi
    echo "making .venv with [$extras] ..." >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    rm -f hermes_deploy/kernels/operators.*.so  # one of older sources must not stand in for one that fails
    .venv/bin/python -m pip install -qq --disable-pip-version-check \
        --constraint constraints.txt --editable ".[$extras]"
    ls hermes_deploy/kernels/operators.*.so >/dev/null 2>&1 ||
        echo "note: the operators for CPUs were not compiled (is g++ there?); ONNX Runtime's compute, slower" >&2
    touch ".venv/.has-$extras-$stamp"
}
