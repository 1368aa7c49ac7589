"""Text that is already on every machine with Python."""

from pathlib import Path

from recurra.errors import RecurraError
from recurra.storage import replace_file


def python_topics(path: Path) -> Path:
    """Write the language reference that Python's `help()` shows, about 460 kB of prose, to `path`; return the path."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"
    content = text.encode()
    try:
        there = path.exists() and path.read_bytes() == content
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecurraError(f"{path}: {error.strerror}; choose a place that can be written to with --out") from error
    if not there:
        replace_file(path, content)
    return path
