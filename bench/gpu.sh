#!/usr/bin/env bash
# Everything that a GPU machine can tell, in one command; works without a network.
#
#   bench/gpu.sh [--quick] [--out DIR] [--packs DIR]
#
# Writes the random packs, runs the engine's tests there, then the engine alone and the whole fleet:
# tiny and full, bf16 and fp16, with graphs and without. JSON and pictures go to DIR (bench/results),
# logs to DIR/logs, a short table to the terminal; the exit status is 1 where a test or a check
# failed. PYTHON names the interpreter (.venv/bin/python, else python3); torch and the cosyvoice
# extra must be there. Without a GPU it runs the tiny pack on the CPU, to show that it runs. --quick
# is meant to take under nine minutes on one H100; without it, half an hour.
set -u
cd "$(dirname "$0")/.."

quick="" out=bench/results packs="${TMPDIR:-/tmp}/voicefleet-bench-packs"
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=--quick ;;
        --out) out=$2; shift ;;
        --packs) packs=$2; shift ;;
        *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
mkdir -p "$out/logs" "$packs"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
began=$SECONDS limit=$([ -n "$quick" ] && echo 510 || echo 3600)
failed=() skipped=() done_=()

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

for needed in torch numpy msgspec safetensors tokenizers; do
    has "$needed" || { echo "$PYTHON has no $needed: nothing can be measured" >&2; exit 1; }
done
gpu=$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')
has cosyvoice || skipped+=("upstream itself: the package cosyvoice is not installed; its algorithm through our modules is the baseline")
has matplotlib || skipped+=("pictures: matplotlib is not installed")
has onnx || { echo "$PYTHON has no onnx, which writing a random pack needs" >&2; [ -e "$packs/cosyvoice2/tiny/metadata.yaml" ] || exit 1; }
[ "$gpu" = 1 ] || skipped+=("the GPU: there is none, so the tiny pack runs on the CPU")

# step NAME SECONDS COMMAND...: run it for so long at most, unless the time is up.
step() {
    local name=$1 most=$2 left=$((limit - (SECONDS - began)))
    shift 2
    if [ "$left" -lt 45 ]; then skipped+=("$name: no time left"); return; fi
    echo; echo "== $name"
    local at=$SECONDS log
    log="$out/logs/$(echo "$name" | tr -c 'a-zA-Z0-9\n' _).log"
    timeout -k 10 $((most < left ? most : left)) "$@" > >(tee "$log") 2>&1
    local status=$?
    done_+=("$(printf '%4d s  status %d  %s' $((SECONDS - at)) $status "$name")")
    if [ $status -eq 124 ] && [ "$most" -ge "$left" ]; then skipped+=("$name: cut short, no time left")
    elif [ $status -ne 0 ]; then failed+=("$name (status $status)"); fi
}

bench() { # NAME SECONDS ARGUMENTS...
    local name=$1 most=$2
    shift 2
    step "$name" "$most" "$PYTHON" -m bench "$@" $quick --out "$out" --packs "$packs"
}

if [ "$gpu" = 1 ]; then step "packs" 120 "$PYTHON" -m bench.cosyvoice.packs "$packs" tiny full
else step "packs" 60 "$PYTHON" -m bench.cosyvoice.packs "$packs" tiny; fi

if has pytest; then
    parallel=""
    has xdist && parallel="-n $(($(nproc) < 8 ? $(nproc) : 8))"
    if [ "$gpu" = 1 ]; then
        step "tests on the GPU" 150 "$PYTHON" -m pytest tests/cosyvoice2 -m gpu -rs
    fi
    # On the CPU: parity with upstream where it is installed, caches, windows, the loop.
    if [ -z "$quick" ]; then
        step "parity tests" 900 "$PYTHON" -m pytest tests/cosyvoice2 -m "not slow and not gpu" \
            -rs $parallel
    else
        parity=(flow_blocks vocoder_windows language_model core)
        parity=("${parity[@]/#/tests/cosyvoice2/test_}")
        step "parity tests" 240 "$PYTHON" -m pytest -m "not slow and not gpu" -rs $parallel \
            "${parity[@]/%/.py}"
    fi
else
    skipped+=("tests: pytest is not installed")
fi

if [ "$gpu" = 1 ]; then
    # What matters most comes first, should the time run out.
    bench "engine full bf16" 200 engine --pack full --dtype bf16 --against-upstream
    fleet=()
    for module in redis hiredis soxr; do has $module || fleet+=("$module"); done
    if [ ${#fleet[@]} -eq 0 ]; then
        bench "fleet full bf16" 150 gpu --pack full --dtype bf16
    else
        skipped+=("the fleet: ${fleet[*]} not installed")
    fi
    few=()
    [ -n "$quick" ] && few=(--sessions 1,64)
    bench "engine full bf16 eager" 150 engine --pack full --dtype bf16 --eager "${few[@]}"
    bench "engine full fp16" 150 engine --pack full --dtype fp16 "${few[@]}"
    bench "engine tiny bf16" 100 engine --pack tiny --dtype bf16
    [ ${#fleet[@]} -eq 0 ] && bench "fleet tiny bf16" 100 gpu --pack tiny --dtype bf16
    if [ -z "$quick" ]; then
        bench "engine full bf16 device times" 300 engine --pack full --dtype bf16 --device-times \
            --sessions 1,16,64 --suffix device_times
    fi
else
    bench "engine tiny" 300 engine --pack tiny --device cpu --threads 1
    bench "fleet tiny" 300 gpu --pack tiny --device cpu --threads 1
fi

echo; echo "== all of it, in $((SECONDS - began)) s"
"$PYTHON" -m bench.cosyvoice.summary "$out"
printf '%s\n' "${done_[@]}"
for one in "${skipped[@]+"${skipped[@]}"}"; do echo "skipped  $one"; done
for one in "${failed[@]+"${failed[@]}"}"; do echo "FAILED   $one"; done
[ ${#failed[@]} -eq 0 ]
