# shellcheck shell=bash
# shellcheck disable=SC2034  # those who source it read its variables
# What the scripts of this folder share. Each sources it; it runs nothing itself.
#
# All are called alike: launch/PLACE.sh [--print] VERB FLAG ...
# With --print they show each command that they would run, and run nothing.

readonly LAUNCH="${BASH_SOURCE[0]%/*}"
readonly STOPPED=143 # exit code of what SIGTERM has ended

print="" # "--print" if that was asked for; "$@" of the script is the rest
if [[ "${1:-}" == --print ]]; then
  print=--print
  shift
fi

# Writes words so that a shell reads them back as they are.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Writes the first word that is no flag: the verb, "help" where there is none.
verb_of() {
  local word
  for word in "$@"; do
    if [[ "$word" != -* ]]; then
      printf '%s\n' "$word"
      return
    fi
  done
  echo help
}

# Writes how many of some processes run a command: all of them share these verbs, one does others.
# `build` uses the other cores or hosts by --num_workers or --runner.
processes_for() {
  local number="$1"
  if [[ ! "$number" =~ ^[1-9][0-9]*$ ]]; then
    echo "$0: the number of processes is '$number'; expected 1 or more" >&2
    return 2
  fi
  case "$(verb_of "${@:2}")" in
    train | eval | score | generate | doctor) echo "$number" ;;
    *) echo 1 ;;
  esac
}

# Ends with a message where a variable is missing.
need() {
  local name="$1" example="$2"
  if [[ -z "${!name:-}" ]]; then
    echo "$0: the variable $name is not set; expected such as $name=$example" >&2
    exit 2
  fi
}

# Waits for processes; SIGTERM and Ctrl-C reach them as SIGTERM. When one has failed, the others are
# stopped, which would wait for it. Sets `code`, the first exit code that is not 0, and `asked`,
# "yes" after a signal.
supervise() {
  local pid rounds=0 left=("$@") still
  code=0 asked=""
  trap 'asked=yes; kill -TERM "${left[@]}" 2> /dev/null || true' TERM INT
  while ((${#left[@]})); do
    still=()
    for pid in "${left[@]}"; do
      if kill -0 "$pid" 2> /dev/null; then
        still+=("$pid")
      else
        wait "$pid" || code="$((code ? code : $?))"
      fi
    done
    left=("${still[@]}")
    if ((code && ${#left[@]})); then
      rounds="$((rounds + 1))"
      if ((rounds == 1)); then kill -TERM "${left[@]}" 2> /dev/null || true; fi
      if ((rounds == 150)); then kill -KILL "${left[@]}" 2> /dev/null || true; fi
    fi
    sleep 0.2 &
    wait "$!" || true
  done
  trap - TERM INT
}
