"""Finds the parts of a PNG file without decoding its pixels.

Pillow does not read the texts, because its size limits for texts are too low for embeddings.
Format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.file_bytes import FileBytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 24 * 2**20  # 16 MB in base64, with some reserve
_MAX_CHUNKS = 20_000
_MAX_KEYWORD = 80  # with the zero byte after it
_TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
_CUT_OFF = "it is a PNG picture that is cut off or damaged; fetch it again."
_AVERAGE = 3  # a filter that needs a slow Python loop
_MAX_AVERAGED = 2**14  # pixels
_CHANNELS = {2: 3, 6: 4}  # colour types RGB and RGBA


class Span(NamedTuple):
    """One chunk: its kind, and its data from `begin` up to `end` in the file. The checksum follows the data."""

    kind: bytes
    begin: int
    end: int


class Png(NamedTuple):
    """The header, pixel chunks and texts of a PNG.

    Attributes:
        width, height: size in pixels, at least 1.
        rgb: whether the pixels are RGB or RGBA with 8 bits a channel.
        channels: 3 or 4 where `rgb` is true.
        interlaced: whether the rows come in seven passes.
        header: the IHDR chunk.
        pixels: the IDAT chunks.
        texts: keyword -> text chunk, for the requested keywords.
    """

    width: int
    height: int
    rgb: bool
    channels: int
    interlaced: bool
    header: Span
    pixels: list[Span]
    texts: dict[bytes, Span]


def read_png(source: FileBytes, keywords: tuple[bytes, ...]) -> Png:
    """Visit all chunks. Only the chunk headers and the keywords of texts are read.

    Raises:
        EmbeddingError: the file is cut off or damaged, has over 20,000 chunks, or has one of `keywords` twice.
    """
    chunks = _walk(source)
    header = chunks[0]
    if header.kind != b"IHDR" or header.end - header.begin != 13:
        raise EmbeddingError(_CUT_OFF)
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", read_chunk(source, header))
    pixels = [chunk for chunk in chunks if chunk.kind == b"IDAT"]
    if not width or not height or not pixels:
        raise EmbeddingError(_CUT_OFF)
    texts: dict[bytes, Span] = {}
    for chunk in chunks:
        if chunk.kind not in _TEXT_KINDS:
            continue
        keyword = source.read(chunk.begin, min(chunk.end, chunk.begin + _MAX_KEYWORD)).partition(b"\0")[0]
        if keyword in texts:
            raise EmbeddingError(f"it has two texts named {keyword.decode()}, so programs could read different things from it.")
        if keyword in keywords:
            texts[keyword] = chunk
    return Png(width, height, depth == 8 and colour in _CHANNELS, _CHANNELS.get(colour, 0), interlace != 0, header, pixels, texts)


def read_chunk(source: FileBytes, chunk: Span) -> bytes:
    """Read the data of `chunk`; raises `EmbeddingError` when the checksum does not match."""
    data = source.read(chunk.begin, chunk.end)
    (expected,) = struct.unpack(">I", source.read(chunk.end, chunk.end + 4).rjust(4, b"\0"))
    if zlib.crc32(data, zlib.crc32(chunk.kind)) != expected:
        raise EmbeddingError(_CUT_OFF)
    return data


def read_text(source: FileBytes, chunk: Span) -> bytes:
    """Read the text of a tEXt, zTXt or iTXt chunk, decompressed.

    Raises:
        EmbeddingError: the text is damaged or over 24 MB.
    """
    if chunk.end - chunk.begin > MAX_TEXT_BYTES:
        raise EmbeddingError(_too_long())
    _, _, rest = read_chunk(source, chunk).partition(b"\0")
    if chunk.kind == b"tEXt":
        return rest
    packed = chunk.kind == b"zTXt"
    if chunk.kind == b"iTXt":
        packed, method = rest[:1] == b"\1", rest[1:2]
        rest = method + b"".join(rest[2:].split(b"\0", 2)[2:])  # after the language and the translated keyword
    if not packed:
        return rest[1:]
    if rest[:1] != b"\0":
        raise EmbeddingError("its text is packed in a way that PNG does not know; the picture is damaged.")
    return inflate(rest[1:], MAX_TEXT_BYTES)


def inflate(data: bytes, limit: int) -> bytes:
    """Decompress the zlib stream at the beginning of `data`; bytes after its end are ignored.

    Raises:
        EmbeddingError: the stream is damaged, cut off, or gives more than `limit` bytes. Decompression stops at the limit.
    """
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise EmbeddingError("its packed data is damaged; fetch the picture again.") from error
    if len(text) > limit:
        raise EmbeddingError(_too_long())
    if not unpacker.eof:
        raise EmbeddingError("its packed data is cut off; fetch the picture again.")
    return text


def first_row(source: FileBytes, png: Png) -> numpy.ndarray | None:
    """The top row of pixels, uint8 [width, channels], without decoding the others; None when only a full decoder can read the row."""
    if not png.rgb or png.interlaced:
        return None
    data = _inflate_start(source, png, 1 + png.width * png.channels)
    if data is None or data[0] > 4 or (data[0] == _AVERAGE and png.width > _MAX_AVERAGED):
        return None
    row = numpy.frombuffer(data, numpy.uint8, offset=1).reshape(png.width, png.channels)
    if data[0] in (1, 4):  # in the first row, Paeth's filter (4) does the same as Sub (1): it adds the pixel to the left
        return numpy.add.accumulate(row, axis=0, dtype=numpy.uint8)
    if data[0] != _AVERAGE:
        return row
    values = row.astype(int).tolist()
    for left, here in zip(values, values[1:]):
        here[:] = [(value + before // 2) % 256 for value, before in zip(here, left)]
    return numpy.array(values, numpy.uint8)


def only_pixels(source: FileBytes, png: Png) -> bytes:
    """A PNG file with the same pixels and no texts; raises `EmbeddingError` when the pixel chunks are over 64 MB."""
    chunks = [png.header, *png.pixels]
    return SIGNATURE + b"".join(source.read(chunk.begin - 8, chunk.end + 4) for chunk in chunks) + b"\0\0\0\0IEND\xae\x42\x60\x82"


def _walk(source: FileBytes) -> list[Span]:
    """All chunks up to IEND, the last one."""
    chunks: list[Span] = []
    begin = len(SIGNATURE)
    while len(chunks) < _MAX_CHUNKS:
        head = source.read(begin, begin + 8)
        if len(head) != 8:
            raise EmbeddingError(_CUT_OFF)
        length, kind = struct.unpack(">I4s", head)
        end = begin + 8 + length
        if not kind.isalpha() or end + 4 > source.size:
            raise EmbeddingError(_CUT_OFF)
        chunks.append(Span(kind, begin + 8, end))
        if kind == b"IEND":
            return chunks
        begin = end + 4
    raise EmbeddingError(f"it is a PNG picture of over {_MAX_CHUNKS} parts; a carrier of an embedding has a few hundred.")


def _inflate_start(source: FileBytes, png: Png, length: int) -> bytes | None:
    """The first `length` bytes of the decompressed pixels; None when they are damaged. The full decoder then reports the damage."""
    unpacker = zlib.decompressobj()
    data = bytearray()  # a bytes object would be copied for each of thousands of chunks
    try:
        for chunk in png.pixels:
            for begin in range(chunk.begin, chunk.end, 2**15):
                data += unpacker.decompress(source.read(begin, min(begin + 2**15, chunk.end)), length - len(data))
                if len(data) == length:
                    return bytes(data)
    except zlib.error:
        return None
    return None


def _too_long() -> str:
    return f"its text unpacks to over {MAX_TEXT_BYTES // 2**20} MB; an embedding's has a few, so it may be made to fill the memory."
