#!/bin/sh
# Unpacks what lies beside it, after a look at the hashes, and runs the check. The report lies in REPORT at the end.
#
#   ./run [REPORT]      REPORT: a folder; default ./report
#
# V2L_WORK is where it unpacks; default ./work. V2L_CUDA_LIBS, V2L_TRT_LIB and V2L_PYTHON name CUDA's libraries, TensorRT's and a
# Python with torch; without them they are looked for.
set -eu
case "${1-}" in
-*)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
report=${1:-report}
case $report in
/*) ;;
*) report=$PWD/$report ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
work=${V2L_WORK:-$here/work}

cd "$here"
sha256sum --quiet -c SHA256SUMS || {
    echo "run: a part is missing or damaged: see above; carry it over once more" >&2
    exit 3
}
mkdir -p "$work"
if [ ! -e "$work/v2l-gpu-check/VERSION" ]; then
    if command -v xz >/dev/null 2>&1; then
        cat part-* | xz -d | tar -C "$work" -xf -
    else
        cat part-* | LD_LIBRARY_PATH="$here/xz" "$here/xz/xz" -d | tar -C "$work" -xf -
    fi
fi
exec "$work/v2l-gpu-check/check" "$report"
