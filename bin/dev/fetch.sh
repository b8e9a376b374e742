# Sourced by bin/setup, bin/dev/trt-check and bin/dev/gpu-check, in the checkout's folder: fetches packages of Python's index into vendor/.
# shellcheck shell=bash

# What is being installed: a download takes its place only when it is complete.
partial=
trap '[ -z "$partial" ] || rm -rf "$partial"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# fail MESSAGE...: one line each, then the end.
fail() {
    printf "bin/${0##*/}: %s\n" "$@" >&2
    exit 1
}

# fetch FOLDER WITHOUT REQUIREMENT... [-- PIP_OPTION...]: installs packages, without what they depend on, as vendor/FOLDER; WITHOUT says
# how to do without them.
fetch() {
    local folder=$1 without=$2 requirements=()
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        requirements+=("$1")
        shift
    done
    [ $# -eq 0 ] || shift
    printf "bin/${0##*/}: fetching %s into vendor/%s\n" "${requirements[*]}" "$folder" >&2
    mkdir -p vendor
    partial=$(mktemp -d "vendor/.$folder.partial.XXXXXX")
    # A `user` or `require-virtualenv` setting of this machine's pip would not go with --target.
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet \
        --disable-pip-version-check --no-input --no-compile --no-deps --only-binary=:all: --target "$partial" \
        "$@" "${requirements[@]}" ||
        fail "pip could not install ${requirements[*]}; see its message above" \
            "a network or mirror problem: correct it (PIP_INDEX_URL names another index) and run it again" \
            "to do without: $without"
    chmod 755 "$partial"
    rm -rf "vendor/$folder"
    mv "$partial" "vendor/$folder"
    partial=
}

# OpenVINO, as vendor/openvino, unless V2L_OPENVINO_LIB names another or it is there: of the wheel, the five libraries that v2l loads.
openvino_version=2026.4.1
have_openvino() { [ -n "${V2L_OPENVINO_LIB:-}" ] || compgen -G 'vendor/openvino/libopenvino_c.so.*' >/dev/null; }
fetch_openvino() {
    local without='set V2L_OPENVINO_LIB to an OpenVINO C library of your own, 2026.4 or newer' platform
    case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=manylinux_2_28_x86_64 ;;
    Linux-aarch64 | Linux-arm64) platform=manylinux_2_35_aarch64 ;;
    *) fail "no OpenVINO to fetch is known for $(uname -s) on $(uname -m)" "to do without: $without" ;;
    esac
    printf "bin/${0##*/}: fetching openvino %s into vendor/openvino\n" "$openvino_version" >&2
    mkdir -p vendor
    partial=$(mktemp -d vendor/.openvino.partial.XXXXXX)
    # Any Python's wheel: the libraries inside are the same in all of them.
    PIP_REQUIRE_VIRTUALENV=0 python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary=:all: --dest "$partial" \
        --platform "$platform" --implementation cp --python-version 3.11 "openvino==$openvino_version" ||
        fail "pip could not download openvino==$openvino_version; see its message above" \
            "a network or mirror problem: correct it (PIP_INDEX_URL names another index) and run it again" \
            "to do without: $without"
    python3 - "$partial" <<'EOF' || fail "the wheel of openvino $openvino_version is not as expected" "to do without: $without"
import fnmatch, pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
wheel, = folder.glob("*.whl")
patterns = ["libopenvino_c.so.*", "libopenvino.so.*", "libopenvino_*_cpu_plugin.so", "libopenvino_onnx_frontend.so.*", "libtbb.so.*"]
with zipfile.ZipFile(wheel) as files:
    names = [name for name in files.namelist() if name.startswith("openvino/libs/")]
    for pattern in patterns:
        name, = fnmatch.filter(names, "openvino/libs/" + pattern)
        (folder / name.rsplit("/", 1)[1]).write_bytes(files.read(name))
wheel.unlink()
EOF
    chmod 755 "$partial"
    rm -rf vendor/openvino
    mv "$partial" vendor/openvino
    partial=
}

# TensorRT-RTX, as vendor/tensorrt, unless V2L_TRT_LIB names another or it is there.
fetch_tensorrt() {
    local requirement=tensorrt-rtx-cu13-libs==1.7.1.116
    command -v c++ >/dev/null ||
        fail "c++ is missing; the TensorRT shim is compiled with it: apt-get install -y build-essential"
    if [ -z "${V2L_TRT_LIB:-}" ] && [ ! -f vendor/tensorrt/tensorrt_rtx_libs/libtensorrt_rtx.so.1 ]; then
        [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
            fail "there is no $requirement for $(uname -s) on $(uname -m); set V2L_TRT_LIB to a library of your own"
        fetch tensorrt 'set V2L_TRT_LIB to a library of your own' "$requirement" -- \
            --platform manylinux_2_28_x86_64 --implementation py --python-version 3.11
    fi
}
