# Functions for calls on a GPU machine without network; see gpu.md. Read them in each call, at the root of the checkout:
#
#   . tools/gpu.sh; unpack build/carry/1 && start fast recipes/queue.yaml 8 4; await fast 60; show fast; pack fast
#
# OUT is the folder whose files come back. What was unpacked and trained stays in ZOO [default: /tmp/zoo] for later calls.
zoo=${ZOO:-/tmp/zoo}
mkdir -p "$zoo/runs" && zoo=$(cd "$zoo" && pwd)
export PYTHONPATH=$zoo/site HF_HOME=$zoo/cache HYPERZOO_DATA=$zoo/data PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TORCHINDUCTOR_COMPILE_THREADS=4
say() { echo "$(date +%T) $*"; }

# unpack FOLDER [NAME]: what `transfer.py send` made. Packages are unpacked and imported; runs of another machine become
# those of the queue NAME [default: a].
unpack() {
  cp -r "$1/." "$zoo" || return
  if [ -e "$zoo/site.zip" ]; then
    rm -rf "$zoo/site"
    python3 -m zipfile -e "$zoo/site.zip" "$zoo/site" || return
    rm "$zoo/site.zip"
    python3 -P -c "import torch, datasets, hyperzoo.experiments.queue as q; print(torch.__version__, torch.cuda.is_available(), q.__file__)" || return
  fi
  if compgen -G "$zoo/runs.tar.*" > /dev/null; then  # parts of one archive may lie in two folders: then the next call unpacks
    mkdir -p "$zoo/runs/${2:-a}" && cat "$zoo"/runs.tar.* | tar x -C "$zoo/runs/${2:-a}" && rm "$zoo"/runs.tar.*
  fi
  say "unpacked $1"
}

# start NAME FILE PROCESSES MINUTES: train a queue or sweep in the background; it outlives the call while the machine is held.
start() {
  mkdir -p "$zoo/recipes" && cp -r recipes/. "$zoo/recipes" && cp "$2" "$zoo/recipes/$1.queue.yaml" || return
  (  # without job control, so that setsid does not fork and $! is the queue
    cd "$zoo" || exit
    setsid nohup python3 -P -m hyperzoo queue "recipes/$1.queue.yaml" --processes "$3" --minutes "$4" \
      --state "$zoo/runs/$1" ${EPOCHS:+--epochs "$EPOCHS"} > "$1.log" 2>&1 < /dev/null &
    echo $! > "$1.pid"
  ) && say "started $1"
}

# await NAME SECONDS: wait until a queue ends, at most SECONDS.
await() {
  local until=$((SECONDS + $2))
  while kill -0 "$(cat "$zoo/$1.pid")" 2> /dev/null && [ $SECONDS -lt $until ]; do sleep 0.5; done
  say "$1: $(tail -1 "$zoo/$1.log")"
}

# show NAME: the log of a queue, and the last line of each run's log.txt.
show() {
  cat "$zoo/$1.log"
  tail -qn 1 "$zoo/runs/$1"/*/*/log.txt 2> /dev/null || true
}

# table NAME STUDY: the table of a finished study; its sweep.json comes back, though not the weights.
table() {
  (set -o pipefail; cd "$zoo" && timeout 60 python3 -P -m hyperzoo train "recipes/studies/$2.yaml" --out "$zoo/runs/$1" | tail -n 30) &&
    cp "$zoo/runs/$1/sweep.json" "${OUT:?}/$2.json"
}

# pack NAME: logs, results and weights of a queue, for `cat runs.tar.* | tar x -C FOLDER`.
pack() {
  python3 tools/transfer.py bring "${OUT:?}" --queue "$zoo/recipes/$1.queue.yaml" --state "$zoo/runs/$1" \
    ${EPOCHS:+--epochs "$EPOCHS"} && say "packed $1"
}
