"""Pictures with what is said of them: a table of names and captions, and the pictures in files, in a zip, or as features."""

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recurra.data.arrays import PICTURES
from recurra.data.examples import Examples
from recurra.data.labelled import (
    TABLES,
    Table,
    Wish,
    asked_column,
    headed,
    joined,
    kind_of,
    labels_in,
    listed,
    named_column,
    settle,
    table_of,
    title,
    understood,
    width_of,
    written,
)
from recurra.data.read import shown
from recurra.data.tables import READING, arrays
from recurra.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_NAMES = (
    *("image", "picture", "file", "path", "filename", "file_name", "image_path", "photo"),
    *("imagen", "imagem", "foto", "archivo", "arquivo"),
)
CAPTION_NAMES = (
    *("caption", "captions", "sentence", "sentences", "text", "description", "name", "title"),
    *("leyenda", "legenda", "frase", "texto", "descripción", "descrição", "nombre", "nome", "título"),
)
ARRAYS = (".npy", ".npz")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")  # Pillow's others call programs or are rare
LONGEST = 128  # pixels of the longer side, where no size is asked for
BYTES = 1 << 28  # of a picture as it lies in its file, at most
SHARE = 10  # one row in so many may be left out without being asked for
LISTED = 10  # problems that a message tells

Size = tuple[int, int]  # height and width in pixels


class _Given(NamedTuple):
    """The files that were given, by what they hold."""

    tables: list[Path]
    archives: list[Path]
    features: list[Path]
    pictures: list[Path]
    others: list[Path]


class _Row(NamedTuple):
    """A picture as a table names it, or as it was given alone, and what is said of it there."""

    place: str
    folder: Path  # that the name counts from
    name: str
    captions: tuple[str, ...]


class _Part(NamedTuple):
    """What one table holds: of each line a row or, in words, why there is none."""

    rows: list[_Row | str]
    notes: list[str]


class _Found(NamedTuple):
    """The rows of one picture and the picture; or, in words, why there is none."""

    rows: list[_Row]
    picture: np.ndarray | str


def captions(
    paths: Sequence[Path],
    *,
    text: str | None = None,
    label: str | None = None,
    size: Size | None = None,
    wanted: bool = True,
    tolerant: bool = False,
) -> Examples:
    """Pictures and, where they are `wanted`, what is said of each: one caption or several.

    A table (`.csv`, `.tsv`, `.jsonl`, `.parquet`, read as `labelled` reads them) has a column `text` of names of pictures and a
    column `label` of captions, by name or number, guessed where they are not said. Rows that name the same picture are
    captions of it, and so are the parts of a list. Names count from the folder of the table; with a `.zip` among the paths
    they are names in it. Instead of pictures there may be features: for each table a `.npy` or `.npz` of numbers
    [images, size] or [images, places, size], whose image i is that of row i. Where captions are not wanted, pictures or
    features may be given alone.

    Pictures (kind "picture", uint8 [height, width, 3]) are of one size: the one given, as (height, width), else that of the
    first, but at most 128 pixels long. Others are shrunk or enlarged until they fit, with white beside them, and white stands
    behind what is transparent. Of an animation the first frame is taken, and photographs are turned upright. Features (kind
    "series") are float32 [places, size].

    Rows without a caption, or whose picture cannot be read, are left out and listed in `problems`; unless `tolerant`, more
    than one such row in ten raises DataError, as does a line that is no row. So do files that do not fit each other.
    UsageError is raised where columns cannot be told, and where Pillow is missing.
    """
    given = _sorted(paths, wanted)
    parts = [_part(path, Wish(text, label, None, wanted), not given.features) for path in given.tables]
    broken = [row for part in parts for row in part.rows if isinstance(row, str)]
    settle(broken, tolerant)
    notes = joined([(path, part.notes) for path, part in zip(given.tables, parts, strict=True)])
    if given.features:
        found = _of_features(given, parts)
    else:
        found, fitted = _of_pictures(given, parts, size)
        notes = [*notes, *fitted]
    kept, lost, problems = _told(found, wanted)
    total = sum(len(one.rows) for one in found)
    if lost * SHARE > total and not tolerant:
        more = f" (and {len(problems) - LISTED} more)" if len(problems) > LISTED else ""
        raise DataError(
            f"{lost} of {total} rows cannot be used: {'; '.join(problems[:LISTED])}{more}. "
            "Names of pictures count from the folder of their table, or are names in the .zip that is given with it"
        )
    left_out = [f"{lost} of {total} rows are left out, the first: {problems[0]}"] if lost else []
    unread = [f"not read: {', '.join(map(shown, given.others))}"] if given.others else []
    return Examples(
        "series" if given.features else "picture",
        [one.picture for one in kept],
        [tuple(caption for row in one.rows for caption in row.captions) for one in kept] if wanted else None,
        None,
        [one.rows[0].place for one in kept],
        notes=[*notes, *left_out, *unread],
        problems=broken + problems,
    )


def _sorted(paths: Sequence[Path], wanted: bool) -> _Given:
    given = _Given([], [], [], [], [])
    for path in paths:
        kind = kind_of(path)
        kinds = (
            (TABLES, given.tables),
            ((".zip",), given.archives),
            (ARRAYS, given.features),
            (PICTURES, given.pictures),
        )
        next((into for some, into in kinds if kind in some), given.others).append(path)
    if not given.tables and (wanted or not (given.features or given.pictures)):
        raise DataError(
            f"no table is among what was given ({', '.join(map(shown, paths[:3]))}{' ...' if paths[3:] else ''}): wanted a "
            f"{', '.join(TABLES)} with the names of pictures and their captions"
        )
    return given


def _told(found: Sequence[_Found], wanted: bool) -> tuple[list[_Found], int, list[str]]:
    """What has a picture and, where it is wanted, a caption; how many rows have not; and these in words."""
    kept: list[_Found] = []
    problems: list[str] = []
    lost = 0
    for rows, picture in found:
        if isinstance(picture, str):
            problems.append(f"{_called(rows[0])} {picture}")
            lost += len(rows)
            continue
        told = [row for row in rows if row.captions or not wanted]
        problems += [f"{row.place} has no caption" for row in rows if wanted and not row.captions]
        lost += len(rows) - len(told)
        if told:
            kept.append(_Found(told, picture))
    return kept, lost, problems


def _called(row: _Row) -> str:
    """Where a picture is named, and its name where that says more."""
    return row.place if not row.name or row.place == shown(row.folder / row.name) else f"{row.place}: {shown(row.name)}"


# --- tables -------------------------------------------------------------------------------------------------------------


def _part(path: Path, wish: Wish, pictured: bool) -> _Part:
    """The rows of a table; of names of pictures only where it is to hold some."""
    table = _table(path, wish)
    picture, caption = _columns(path, table, wish, pictured)
    place = shown(path)
    lines: list[tuple[int, _Row | str]] = list(table.problems)
    for line, cells in table.rows:
        name = "" if picture is None else (written(cells.get(picture)) or "").strip()
        said = None if caption is None else labels_in(cells.get(caption), None)
        lines.append((line, _Row(f"{place}:{line}", path.parent, name, said or ())))
    lines.sort(key=lambda line: line[0])
    return _Part(
        [row for _, row in lines], [understood(table, {"pictures are": picture, "captions are": caption}), *table.notes]
    )


def _table(path: Path, wish: Wish) -> Table:
    """A table with names of its columns, where it has any."""
    table = table_of(path)
    if table.names is None and table.rows:
        first = [cell.strip() for cell in table.rows[0][1].values()]
        known = next((cell for cell in first if cell.casefold() in (*PICTURE_NAMES, *CAPTION_NAMES)), None)
        table = headed(table, wish._replace(text=known or wish.text))
    if not table.rows and not table.problems:
        raise DataError(f"{shown(path)} holds no row: give a table with a row for each picture and caption")
    return table


def _columns(path: Path, table: Table, wish: Wish, pictured: bool) -> tuple[int | None, int | None]:
    """The columns of the names of pictures and of captions: as said, else by name, else by what is in them."""
    if not table.rows:
        return None, None
    caption = None if wish.label is None or not wish.wanted else asked_column(path, table, wish.label)
    picture = None
    if pictured:
        picture = (
            named_column(path, table, PICTURE_NAMES, caption)
            if wish.text is None
            else asked_column(path, table, wish.text)
        )
        picture = _by_suffix(table) if picture is None else picture
        if picture is None:
            raise UsageError(f"{shown(path)}: which column names the pictures cannot be told; {listed(table)}")
    if caption is None and wish.wanted:
        caption = named_column(path, table, CAPTION_NAMES, picture)
        others = {*range(width_of(table))} - {picture}
        if caption is None and len(others) == 1:
            caption = others.pop()
        if caption is None:
            raise UsageError(f"{shown(path)}: which column holds the captions cannot be told; {listed(table)}")
    if picture is not None and picture == caption:
        raise UsageError(
            f"{shown(path)}: pictures and captions are both column {title(table, picture)}; {listed(table)}"
        )
    return picture, caption


def _by_suffix(table: Table) -> int | None:
    """The first column that holds names of pictures and nothing else."""
    for column in range(width_of(table)):
        names = [written(cells.get(column)) or "" for _, cells in table.rows]
        if all(name.strip().lower().endswith(PICTURES) for name in names):
            return column
    return None


# --- pictures -----------------------------------------------------------------------------------------------------------


def _of_pictures(given: _Given, parts: Sequence[_Part], size: Size | None) -> tuple[list[_Found], list[str]]:
    """The pictures in the order in which they are first named, each read once, and what was done to them."""
    alone = [_Row(shown(path), path.parent, path.name, ()) for path in given.pictures] if not given.tables else []
    named: dict[tuple[Path, str], list[_Row]] = {}
    for row in [row for part in parts for row in part.rows if isinstance(row, _Row)] + alone:
        named.setdefault((Path() if given.archives else row.folder, row.name), []).append(row)
    found = []
    with ExitStack() as stack:
        fetch = _from_archives(stack, given.archives) if given.archives else _from_folder
        for rows in named.values():
            content = fetch(rows[0]) if rows[0].name else "names no picture"
            image = _decoded(content) if isinstance(content, bytes) else content
            if isinstance(image, str):
                found.append(_Found(rows, image))
            else:
                size = size or _natural(image)
                found.append(_Found(rows, _fitted(image, size)))
    if size is None:
        return found, []
    return found, [f"pictures are fitted into {size[0]} x {size[1]} pixels (height x width), with white beside them"]


def _from_folder(row: _Row) -> bytes | str:
    """The content of the file that a row names; or, in words, why there is none."""
    path = row.folder / row.name
    try:
        if not path.is_file():
            return "is not there"
        size = path.stat().st_size
        return _too_large(size) if size > BYTES else path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _from_archives(stack: ExitStack, paths: Sequence[Path]) -> Callable[[_Row], bytes | str]:
    """The same for the files in archives; the first that has the name counts."""
    members: dict[str, zipfile.ZipFile] = {}
    for path in paths:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except READING as error:
            raise DataError(f"{shown(path)} is no zip that can be read ({shown(str(error))}); make it anew") from error
        for name in archive.namelist():
            members.setdefault(name, archive)
    where = ", ".join(shown(path.name) for path in paths)

    def fetch(row: _Row) -> bytes | str:
        if row.name not in members:
            return f"is not in {where}"
        archive = members[row.name]
        try:
            size = archive.getinfo(row.name).file_size
            return _too_large(size) if size > BYTES else archive.read(row.name)
        except READING as error:
            return f"cannot be read: {error}"

    return fetch


def _too_large(size: int) -> str:
    return f"cannot be read: it has {size} bytes, and {BYTES} are the most"


def _check_pillow() -> None:
    if find_spec("PIL") is None:
        raise UsageError("pictures are read by Pillow, which is not installed: pip install 'recurra[vision]'")


def _decoded(content: bytes) -> "Image | str":
    """A picture in three colours, upright, on white; or, in words, why there is none."""
    _check_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file and does not keep it from being read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _on_white(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        return f"cannot be read: it is none of {', '.join(FORMATS)}"
    except (*READING, IndexError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"cannot be read: {shown(str(error)) or type(error).__name__}"


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would cut values above 255 off instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers are of mode {image.mode}, whose white is not known")
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _natural(image: "Image") -> Size:
    """The size of a picture, or the one of its proportions that is 128 pixels long."""
    scale = min(1, LONGEST / max(image.size))
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def _fitted(image: "Image", size: Size) -> np.ndarray:
    """The picture as large as it can be in `size` without a change of its proportions, in the middle: uint8 [height, width, 3]."""
    from PIL.Image import Resampling

    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    pixels[top : top + inner[1], left : left + inner[0]] = np.asarray(image.resize(inner, Resampling.BICUBIC))
    return pixels


# --- features -----------------------------------------------------------------------------------------------------------


def _of_features(given: _Given, parts: Sequence[_Part]) -> list[_Found]:
    """The rows of the tables, each with the features of its number; or the features alone."""
    values = [_features(path) for path in given.features]
    for path, some in zip(given.features, values, strict=True):
        if some.shape[1:] != values[0].shape[1:]:
            raise DataError(
                f"{shown(path)} has {_times(some)} numbers an image and {shown(given.features[0])} has {_times(values[0])}; "
                "give features that were computed alike"
            )
    if not given.tables:
        return [
            _Found([_Row(f"{shown(path)}:{number}", path.parent, "", ())], one)
            for path, some in zip(given.features, values, strict=True)
            for number, one in enumerate(some, 1)
        ]
    if len(given.tables) != len(values):
        raise DataError(
            f"{len(given.tables)} tables were given and {len(values)} arrays of features: give one for each"
        )
    for table, path, part, some in zip(given.tables, given.features, parts, values, strict=True):
        if len(part.rows) != len(some):
            raise DataError(
                f"{shown(table)} has {len(part.rows)} rows and {shown(path)} the features of {len(some)} images; "
                "wanted one row for each image, in the same order"
            )
    pairs = [
        (row, one) for part, some in zip(parts, values, strict=True) for row, one in zip(part.rows, some, strict=True)
    ]
    return [_Found([row], one) for row, one in pairs if isinstance(row, _Row)]


def _features(path: Path) -> np.ndarray:
    """float32 [images, places, size]."""
    found = arrays(path)
    if len(found) != 1:
        raise DataError(f"{shown(path)} holds the arrays {', '.join(found)}; save the one that is meant as .npy")
    (values,) = found.values()
    if values.ndim not in (2, 3) or not values.size or values.dtype.kind not in "fiu":
        raise DataError(
            f"{shown(path)} holds {values.dtype} {list(values.shape)}, wanted numbers [images, size] or [images, places, size]"
        )
    with np.errstate(over="ignore"):
        values = values.reshape(len(values), -1, values.shape[-1]).astype(np.float32)
    finite = np.isfinite(values).all((1, 2))
    if not finite.all():
        raise DataError(f"{shown(path)}: image {int(np.argmin(finite)) + 1} has a feature that is not finite")
    return values


def _times(values: np.ndarray) -> str:
    return " x ".join(map(str, values.shape[1:]))


def resized(picture: np.ndarray, size: Size) -> np.ndarray:
    """A picture uint8 [height, width, 3] in another size, with white beside it where its sides have another proportion."""
    _check_pillow()
    from PIL import Image

    return _fitted(Image.fromarray(picture), size)
