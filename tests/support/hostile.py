"""Corpus of hostile and unusual uploads, with the HTTP status and error code each must get."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

OK = (200, "")
BROKEN = (400, "broken_image")
LARGE = (413, "image_too_large")
NO_IMAGE = (415, "unsupported_image")


@dataclass(frozen=True)
class Hostile:
    """Upload with the expected answer: status and error code."""

    name: str
    data: bytes
    answer: tuple[int, str]


def _picture(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def _encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    _picture(mode).save(out, kind, **options)
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = rows if rows is not None else bytes((1 + 3 * width) * height)
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 154, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(100)
    )


def _tiff(width: int, height: int) -> bytes:
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, height),
        (279, 4, 64),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _frames(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    frames = [_picture(), _picture().rotate(180)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def _oriented() -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    _picture().save(out, "JPEG", exif=exif)
    return out.getvalue()


def _exif(kind: str, data: bytes) -> bytes:
    out = io.BytesIO()
    _picture().save(out, kind, exif=data)
    return out.getvalue()


def _tags(*tags: tuple[int, int, int]) -> bytes:
    """Return an EXIF block with tags (number, type, value)."""
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _many_scans() -> bytes:
    whole = _encoded("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + 600 * whole[last:-2] + whole[-2:]


def _sixteen_bit_rgb() -> bytes:
    rows = b"".join(b"\0" + bytes(range(6)) * 8 for _ in range(8))
    return _png(8, 8, depth=16, rows=rows)


def _grey(kind: str, dtype: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 1000, 48 * 64).reshape(48, 64).astype(dtype)).save(out, kind)
    return out.getvalue()


def corpus() -> list[Hostile]:
    """Return the whole corpus; the names are unique."""
    return [*_truncated(), *_damaged(), *_other_kinds(), *_bombs(), *_odd_but_good()]


def _truncated() -> Iterator[Hostile]:
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        whole = _encoded(kind)
        for share in (0.1, 0.3, 0.6, 0.9):
            # even the shortest part contains a whole header, so each is recognised as an image
            yield Hostile(f"{kind} cut at {share:.0%}", whole[: int(len(whole) * share)], BROKEN)
    # Pillow needs a minimum of the header to recognise an image
    for kind, count, answer in (("PNG", 1, NO_IMAGE), ("PNG", 8, NO_IMAGE), ("PNG", 20, BROKEN), ("PNG", 30, NO_IMAGE)):
        yield Hostile(f"{kind} of {count} bytes", _encoded(kind)[:count], answer)
    for kind, count, answer in (("JPEG", 2, NO_IMAGE), ("JPEG", 20, NO_IMAGE), ("JPEG", 30, BROKEN)):
        yield Hostile(f"{kind} of {count} bytes", _encoded(kind)[:count], answer)


def _damaged() -> Iterator[Hostile]:
    png, jpeg = bytearray(_encoded("PNG")), _encoded("JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    yield Hostile("PNG with a flipped byte", bytes(flipped), BROKEN)
    header = bytearray(png)
    header[17] ^= 0xFF
    yield Hostile("PNG with a wrong checksum in its header", bytes(header), NO_IMAGE)
    yield Hostile("PNG without pixels", _png(8, 8, rows=b""), BROKEN)
    # Pillow fills missing rows with black if the compressed stream is complete
    yield Hostile("PNG with too few rows", _png(8, 8, rows=bytes(25 * 3)), OK)
    yield Hostile("PNG of no width", _png(0, 8, rows=b""), NO_IMAGE)
    yield Hostile("PNG with an unknown colour type", _png(8, 8, colour=5), NO_IMAGE)
    yield Hostile("PNG with a palette and none", _png(8, 8, colour=3, rows=bytes(9 * 8)), BROKEN)
    yield Hostile("JPEG of a head and zeros", jpeg[:200] + bytes(2000), BROKEN)
    yield Hostile("WebP that ends in its chunk", b"RIFF\x24\0\0\0WEBPVP8 " + bytes(16), BROKEN)
    yield Hostile("TIFF whose directory is outside", b"II*\0" + struct.pack("<I", 1 << 30), NO_IMAGE)


def _other_kinds() -> Iterator[Hostile]:
    yield Hostile("nothing", b"", BROKEN)
    yield Hostile("zeros", bytes(1000), NO_IMAGE)
    yield Hostile("noise", np.random.default_rng(1).bytes(5000), NO_IMAGE)
    yield Hostile("text", b"I am a photograph, trust me.", NO_IMAGE)
    yield Hostile("HTML", b"<!doctype html><script>alert(1)</script>", NO_IMAGE)
    yield Hostile("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>', NO_IMAGE)
    yield Hostile("PDF", b"%PDF-1.7\n%%EOF", NO_IMAGE)
    yield Hostile("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit", NO_IMAGE)
    yield Hostile("ZIP", b"PK\x03\x04" + bytes(60), NO_IMAGE)
    yield Hostile("GIF", _encoded("GIF"), NO_IMAGE)
    yield Hostile("animated GIF", _frames("GIF"), NO_IMAGE)
    yield Hostile("GIF that is a script", b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)", NO_IMAGE)
    yield Hostile("icon", _encoded("ICO"), NO_IMAGE)
    yield Hostile("PPM", _encoded("PPM"), NO_IMAGE)
    yield Hostile("TIFF of 32-bit integers", _grey("TIFF", "int32"), NO_IMAGE)
    yield Hostile("TIFF of floats", _grey("TIFF", "float32"), NO_IMAGE)
    yield Hostile("pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR.", NO_IMAGE)


def _bombs() -> Iterator[Hostile]:
    yield Hostile("PNG that says 50,000 x 50,000", _png(50_000, 50_000, rows=b""), LARGE)
    yield Hostile("PNG that says 8,000 x 8,000", _png(8_000, 8_000, rows=b""), LARGE)
    yield Hostile("PNG that says 2 billion wide", _png(2**31 - 1, 1, rows=b""), LARGE)
    yield Hostile("zlib bomb", _png(8_000, 6_000, rows=bytes(100_000_000)), LARGE)
    yield Hostile("BMP that says 60,000 x 60,000", _bmp(60_000, 60_000), LARGE)
    yield Hostile("TIFF that says 100,000 x 100,000", _tiff(100_000, 100_000), LARGE)
    jpeg = bytearray(_encoded("JPEG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = b"\xff\xff\xff\xff"
    yield Hostile("JPEG that says 65,535 x 65,535", bytes(jpeg), LARGE)
    text = zlib.compress(bytes(80_000_000))
    yield Hostile("PNG of one column that is a million tiles", _png(1, 39_000_000, rows=b""), LARGE)
    yield Hostile("JPEG of hundreds of scans", _many_scans(), NO_IMAGE)
    yield Hostile("PNG with a text of 80 MB", _png(8, 8, extra=_chunk(b"zTXt", b"a\0\0" + text)), BROKEN)


def _odd_but_good() -> Iterator[Hostile]:
    yield Hostile("CMYK JPEG", _encoded("JPEG", "CMYK"), OK)
    yield Hostile("grey JPEG", _encoded("JPEG", "L"), OK)
    yield Hostile("progressive JPEG", _encoded("JPEG", progressive=True), OK)
    yield Hostile("turned JPEG", _oriented(), OK)
    yield Hostile("16-bit grey PNG", _grey("PNG", "uint16"), OK)
    yield Hostile("16-bit RGB PNG", _sixteen_bit_rgb(), OK)
    yield Hostile("1-bit PNG", _encoded("PNG", "1"), OK)
    yield Hostile("see-through PNG", _encoded("PNG", "RGBA"), OK)
    yield Hostile("palette PNG", _encoded("PNG", "P"), OK)
    yield Hostile("interlaced header", _encoded("PNG", "LA"), OK)
    yield Hostile("animated PNG", _frames("PNG"), OK)
    yield Hostile("animated WebP", _frames("WEBP"), OK)
    yield Hostile("TIFF of two pages", _frames("TIFF"), OK)
    yield Hostile("JPEG with a ZIP behind it", _encoded("JPEG") + b"PK\x03\x04" + bytes(100), OK)
    yield Hostile("PNG with a page behind it", _encoded("PNG") + b"<script>alert(1)</script>", OK)
    yield Hostile("one pixel", _png(1, 1), OK)
    # the pixels are readable even if the metadata is not
    yield Hostile("PNG with garbage for EXIF", _png(8, 8, extra=_chunk(b"eXIf", b"garbage!")), OK)
    bomb = "".join(f'<!ENTITY e{n + 1} "{10 * f"&e{n};"}">' for n in range(9))
    entities = f'<!DOCTYPE x [<!ENTITY e0 "x">{bomb}]><x>&e9;</x>'.encode()
    for kind in ("JPEG", "WEBP"):
        yield Hostile(f"{kind} with an XML bomb for XMP", _encoded(kind, xmp=entities), OK)
        yield Hostile(f"{kind} with garbage for XMP", _encoded(kind, xmp=b"<x:xmpmeta \xff\0"), OK)
        yield Hostile(f"{kind} with garbage for EXIF", _exif(kind, b"Exif\0\0garbage!garbage!"), OK)
        yield Hostile(f"{kind} with EXIF cut off", _exif(kind, b"Exif\0\0II*\0"), OK)
        odd = _tags((0x0100, 9, 0xFFFFFFFF), (0x0111, 7, 1), (0x0112, 3, 6))
        yield Hostile(f"turned {kind} with odd tags", _exif(kind, odd), OK)
