"""The parts of the commands' script that are the same for every bundle: bash functions."""

from __future__ import annotations

TRTEXEC_FOLDER = "/usr/src/tensorrt/bin"  # of NVIDIA's Debian packages and of JetPack

# Where the script was called from, before it goes to the bundle.
FOLDERS = """\
caller=$PWD
CDPATH='' cd -- "$(dirname -- "$0")/.."
step=${{1:-build}}
engines=${{2:-}}
case $engines in
"") engines={default} ;;
/*) ;;
*) engines=${{caller%/}}/$engines ;;
esac
"""

# An engine gets its name when it is whole: one that was cut short must not pass for newer than its graph.
CURRENT = """
current() {{ # ENGINE GRAPH
  if [ "$engines/$1.engine" -nt "$2" ] && [ "$engines/$1.engine" -nt {script} ]; then
    echo "$engines/$1.engine is newer than $2 and these commands: not built again (remove it to build it again)"
  else
    return 1
  fi
}}
"""

FIND_TRTEXEC = f"""
find_trtexec() {{
  command -v trtexec >/dev/null && return
  PATH=$PATH:{TRTEXEC_FOLDER}
  command -v trtexec >/dev/null && return
  echo "trtexec is neither on PATH nor in {TRTEXEC_FOLDER}: install NVIDIA's Debian package libnvinfer-bin (JetPack has it)," \\
    "or add the bin folder of TensorRT's tar archive to PATH; pip's tensorrt comes without it" >&2
  exit 1
}}
"""

# The modules are looked for, not loaded, in the Python that the command polygraphy starts, by its first line.
NEED = """
need() {{ # MODULE...
  local tool line missing python=(python3)
  if tool=$(command -v polygraphy); then
    IFS= read -r line <"$tool" || true
    case $line in "#!"*python*) read -r -a python <<<"${{line#"#!"}}" ;; esac
    missing=$("${{python[@]}}" -c '
import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))
' "$@" 2>/dev/null) || missing=$*
  else
    missing="$* (no command polygraphy on PATH)"
  fi
  if [ -n "$missing" ]; then
    echo "$step needs Python modules that are missing here: $missing; {advice}" >&2
    exit 1
  fi
}}
"""

HAVE_ENGINES = """
have_engines() {{
  local graph
  for graph in {graphs}; do
    if [ ! -e "$engines/$graph.engine" ]; then
      echo "there is no $engines/$graph.engine; build first: bash {script} build" >&2
      exit 1
    fi
  done
}}
"""
