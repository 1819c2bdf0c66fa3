"""The packages that an export needs beyond the lab's own."""

from importlib.util import find_spec

from lmlab.core.errors import UserError


def needed(format: str, *modules: str) -> None:
    """Raises UserError, before any work, unless all these modules are installed."""
    if any(find_spec(module) is None for module in modules):
        *first, last = modules
        names = f"{', '.join(first)} and {last}" if first else last
        raise UserError(
            f"lmlab export {format} needs {names}: pip install 'lmlab[export]' (in a copy of the"
            " project: pip install -e '.[export]')"
        )
