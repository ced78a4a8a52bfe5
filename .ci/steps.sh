# SPDX-License-Identifier: Apache-2.0
# What .ci/run and .ci/torch share; sourced by both.

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=2

# copy_tree FOLDER: the checkout as git sees it, edits included, in a folder that is a checkout too.
copy_tree() {
  mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C "$1"
  (cd "$1" && git init -q . && git add -A)
}

step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }

# The lines of the fenced block that follows a marker in README.md, exactly as a reader copies them.
readme() { awk -v mark="<!-- ci: $1 -->" '$0==mark{m=1} m&&/^```/{if(b)exit; b=1; next} b' README.md; }

# The GPU kernels' values under Triton's interpreter; $bin is a virtual environment's, with the extra gpu.
gpu_values() { TRITON_INTERPRET=1 "$bin/pytest" -n 2 -q tests/kernels; }

# Their machine code for every target, against the committed card of this release of Triton.
gpu_card() {
  local card
  card=$("$bin/python" bench/gpu_static.py --check) || { grep WRONG <<< "$card"; return 1; }
  tail -n 1 <<< "$card"
}

# beside NAME COMMAND...: runs a command in the background; `joined NAME` waits for it, shows what it
# printed and fails where it failed.
declare -A beside_pid beside_log
beside() {
  local name=$1
  shift
  beside_log[$name]=$(mktemp)
  (set -e; "$@") > "${beside_log[$name]}" 2>&1 &
  beside_pid[$name]=$!
}
joined() {
  local code=0
  wait "${beside_pid[$1]}" || code=$?
  cat "${beside_log[$1]}"
  rm -f "${beside_log[$1]}"
  return "$code"
}

# once NAME COMMAND...: runs it, keeps what it printed in $work/logs/NAME and the commit, that of
# $work/commit, in $work/logs/NAME.passed; not again where it passed. needed: and stops if it failed.
failed=()
once() {
  local name=$1
  shift
  if [ ! -e "$work/logs/$name.passed" ]; then
    step "$name"
    beside "$name" "$@"
    if joined "$name" > "$work/logs/$name"; then
      cp "$work/commit" "$work/logs/$name.passed"
    else
      failed+=("$name")
      tail -n 40 "$work/logs/$name"
    fi
  fi
}
needed() {
  once "$@"
  if [ ${#failed[@]} -ne 0 ]; then exit 1; fi
}
# last NAME: the last line that a step printed; where NAME: the commit that it passed on, if another.
last() { tail -n 1 "$work/logs/$1" | sed 's/^=* *//; s/ *=*$//'; }
where() {
  if [ -e "$work/logs/$1.passed" ] && ! cmp -s "$work/logs/$1.passed" "$work/commit"; then
    echo " (on $(cat "$work/logs/$1.passed"))"
  fi
}
