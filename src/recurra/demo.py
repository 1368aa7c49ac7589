"""Text that is already on every machine with Python."""

from pathlib import Path

from recurra.storage import replace_file


def python_topics(path: Path) -> Path:
    """Write the language reference that Python's `help()` shows, about 460 kB of prose, to `path`; return the path."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"
    content = text.encode()
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    return path
