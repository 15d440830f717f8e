#!/usr/bin/env bash
# One call on a machine without network: unpack what was carried, check the imports, train by the queue, pack results.
#
#   OUT=results bash tools/gpu.sh build/carry/1 8 [--processes 8]    # see gpu.md; 0 minutes: unpack and check only
#
# QUEUE is the queue or sweep [default: recipes/queue.yaml], EPOCHS shortens its runs, for a trial. What was unpacked and
# trained stays in ZOO [default: /tmp/zoo], so that the next call goes on.
set -euo pipefail
carried=$1 minutes=$2
shift 2
zoo=${ZOO:-/tmp/zoo}
queue=(${QUEUE:-recipes/queue.yaml} ${EPOCHS:+--epochs "$EPOCHS"})
started=$SECONDS
say() { echo "$((SECONDS - started)) s: $*"; }

mkdir -p "$zoo/runs"
[ ! -d "$carried" ] || cp -r "$carried/." "$zoo"
[ ! -e "$zoo/site.zip" ] || { rm -rf "$zoo/site"; python3 -m zipfile -e "$zoo/site.zip" "$zoo/site"; rm "$zoo/site.zip"; }
if compgen -G "$zoo/runs.tar.*" > /dev/null; then
  cat "$zoo"/runs.tar.* | tar x -C "$zoo/runs"
  rm "$zoo"/runs.tar.*
fi
export PYTHONPATH=$zoo/site HF_HOME=$zoo/cache HYPERZOO_DATA=$zoo/data PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TORCHINDUCTOR_COMPILE_THREADS=4
say unpacked
python3 -P -c "import torch, datasets, hyperzoo.experiments.queue as q; print(torch.__version__, torch.cuda.is_available(), q.__file__)"
say imported
[ "$minutes" != 0 ] || exit 0
code=0  # a run that failed must not keep the results of the others here
python3 -P -m hyperzoo queue "${queue[@]}" --minutes "$minutes" --state "$zoo/runs" "$@" || code=$?
say trained
python3 tools/transfer.py bring "$OUT" --queue "${queue[@]}" --state "$zoo/runs"
say packed
exit "$code"
