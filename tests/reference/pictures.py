#!/usr/bin/env python3
"""Small pictures and animations of every kind that v2l reads, and what Pillow makes of them.

Needs Pillow and NumPy alone (versions: requirements.txt), and `safetensors` to write.
    python tests/reference/pictures.py

Writes tests/fixtures/pictures/pictures.safetensors: for each file NAME its bytes `NAME`, and what it shows as `NAME|frames`
u8 [frames, height, width, 3]: `ImageOps.exif_transpose(frame).convert("RGB")` of each frame. What was there before is not stored
again: the metadata then have the other's name under `NAME|frames`. They also have `NAME|milliseconds`, the durations of an animation's
frames. An APNG with a picture of its own beside the animation has that picture as `NAME|first`.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from safetensors.numpy import save_file

TARGET = Path(__file__).resolve().parents[1] / "fixtures/pictures/pictures.safetensors"
WIDTH, HEIGHT = 12, 8
files: "dict[str, np.ndarray]" = {}
metadata: "dict[str, str]" = {}


def scene(width=WIDTH, height=HEIGHT, shift=0):
    """Slopes with a saturated block, a dark block and a line: no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    levels = np.stack([(x * 14 + shift * 20) % 256, y * 25 % 256, 255 - (x + y) * 9 % 256], axis=-1).astype(np.uint8)
    levels[2:5, 3:8] = (250, 10, 20)
    levels[height - 3 :, width - 4 :] = (5, 30, 90)
    levels[:, width // 2] = (240, 240, 20)
    return levels


def smooth(width=20, height=12):
    """Slopes alone: filters that bring chroma to full size agree on them."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 12, y * 20, 255 - (x + y) * 7], axis=-1).astype(np.uint8))


def rgb(**how):
    return Image.fromarray(scene(**how))


def alpha(levels):
    """Transparency that is not of one piece, with colours under it."""
    y, x = np.mgrid[0 : levels.shape[0], 0 : levels.shape[1]]
    return np.concatenate([levels, (255 - x * 21 % 256)[..., None].astype(np.uint8)], axis=-1)


def add(name, data):
    opened = Image.open(io.BytesIO(data))
    count = getattr(opened, "n_frames", 1)
    beside = bool(getattr(opened, "default_image", False))
    frames, times = [], []
    for index in range(count):
        # Anew: a frame of Pillow's may depend on whether the one before was asked for.
        opened = Image.open(io.BytesIO(data))
        opened.seek(index)
        opened.load()
        frames.append(np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))
        times.append(int(opened.info.get("duration", 0)))
    files[name] = np.frombuffer(data, np.uint8)
    if beside:
        files[name + "|first"] = frames[0][None]
        frames, times = frames[1:], times[1:]
    shown = np.stack(frames)
    same = next((other for other, array in files.items() if "|" in other and np.array_equal(array, shown)), None)
    if same is None:
        files[name + "|frames"] = shown
    else:
        metadata[name + "|frames"] = same
    if len(frames) > 1:
        metadata[name + "|milliseconds"] = " ".join(map(str, times))


def saved(image, kind, **how):
    target = io.BytesIO()
    if kind == "JPEG":
        how = dict(optimize=True, quality=95, **how)
    image.save(target, kind, **how)
    return target.getvalue()


def oriented(value, big=False):
    exif = Image.Exif()
    exif.endian = ">" if big else "<"
    exif[0x10F] = "a camera"
    exif[0x112] = value
    return exif.tobytes()


def xmp(value):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{value}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(kind, bits, rows, *, width=WIDTH, height=HEIGHT, interlaced=0, before=b""):
    """A PNG file of rows of packed samples: what Pillow reads and does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def packed(samples, bits):
    """Samples [height, width] of `bits`, packed by rows."""
    rows = []
    for row in samples:
        digits = "".join(format(int(sample), f"0{bits}b") for sample in row)
        digits += "0" * (-len(digits) % 8)
        rows.append(bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8)))
    return rows


def jpegs():
    for name, how in {
        "444": dict(subsampling=0),
        "422": dict(subsampling=1),
        "420": dict(subsampling=2),
        "420_progressive": dict(subsampling=2, progressive=True),
        "rgb": dict(keep_rgb=True),
        "restart": dict(subsampling=2, restart_marker_blocks=1),
        "icc": dict(subsampling=0, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
    }.items():
        add(f"jpeg_{name}.jpg", saved(rgb(width=20, height=12), "JPEG", **how))
    add("jpeg_422_smooth.jpg", saved(smooth(), "JPEG", subsampling=1))
    add("jpeg_420_smooth.jpg", saved(smooth(), "JPEG", subsampling=2))
    add("jpeg_420_odd.jpg", saved(rgb(width=19, height=11), "JPEG", subsampling=2))
    add("jpeg_grey.jpg", saved(rgb().convert("L"), "JPEG"))
    add("jpeg_cmyk.jpg", saved(rgb().convert("CMYK"), "JPEG"))
    for value in range(10):
        add(f"jpeg_orientation_{value}.jpg", saved(rgb(), "JPEG", subsampling=0, exif=oriented(value, big=value % 2 == 1)))
    add("jpeg_orientation_xmp.jpg", saved(rgb(), "JPEG", subsampling=0, xmp=xmp(6)))
    add("jpeg_orientation_both.jpg", saved(rgb(), "JPEG", subsampling=0, exif=oriented(8), xmp=xmp(3)))


def pngs():
    levels = scene()
    grey = levels[..., 0]
    add("png_rgb.png", saved(rgb(), "PNG"))
    add("png_rgba.png", saved(Image.fromarray(alpha(levels)), "PNG"))
    add("png_grey.png", saved(Image.fromarray(grey), "PNG"))
    add("png_grey_alpha.png", saved(Image.fromarray(alpha(levels)).convert("LA"), "PNG"))
    for bits in (1, 2, 4):
        add(f"png_grey_{bits}.png", png(0, bits, packed(grey >> (8 - bits), bits)))
    wide = levels.astype(np.uint16) * 257 - (levels > 99) * 100
    add("png_rgb_16.png", png(2, 16, [row.astype(">u2").tobytes() for row in wide]))
    wide = np.concatenate([wide, (alpha(levels)[..., 3:].astype(np.uint16) * 257)], axis=-1)
    add("png_rgba_16.png", png(6, 16, [row.astype(">u2").tobytes() for row in wide]))
    add("png_grey_alpha_16.png", png(4, 16, [row[:, [0, 3]].astype(">u2").tobytes() for row in wide]))
    add("png_grey_16.png", png(0, 16, [row[:, 0].astype(">u2").tobytes() for row in wide]))
    for bits in (1, 2, 4, 8):
        colors = bytes(value * (7 + 31 * place) % 256 for value in range(1 << min(bits, 5)) for place in range(3))
        indices = grey >> (8 - min(bits, 5))
        add(f"png_palette_{bits}.png", png(3, bits, packed(indices, bits), before=chunk(b"PLTE", colors)))
    see = chunk(b"PLTE", colors) + chunk(b"tRNS", b"\0\x80")
    add("png_palette_transparent.png", png(3, 8, packed(indices, 8), before=see))
    add("png_rgb_transparent.png", png(2, 8, [row.tobytes() for row in levels], before=chunk(b"tRNS", struct.pack(">HHH", 250, 10, 20))))
    add("png_gamma.png", png(2, 8, [row.tobytes() for row in levels], before=chunk(b"gAMA", struct.pack(">I", 100000))))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row.tobytes() for top, left, down, right in passes for row in levels[top::down, left::right] if row.size]
    add("png_interlaced.png", png(2, 8, rows, interlaced=1))
    for value in range(1, 9):
        add(f"png_orientation_{value}.png", saved(rgb(), "PNG", exif=oriented(value, big=value % 2 == 0)))
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(6).decode())
    add("png_orientation_xmp.png", saved(rgb(), "PNG", pnginfo=info))


    raw = oriented(8).hex()
    profile = f"\nexif\n{len(raw) // 2:8}\n" + "\n".join(raw[at : at + 72] for at in range(0, len(raw), 72)) + "\n"
    for zipped in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", profile, zip=zipped)
        add(f"png_orientation_raw{'_packed' * zipped}.png", saved(rgb(), "PNG", pnginfo=info))
    whole = saved(rgb(), "PNG")
    behind = whole[:-12] + chunk(b"eXIf", oriented(6).removeprefix(b"Exif\0\0")) + whole[-12:]
    add("png_orientation_behind.png", behind)


def webps():
    add("webp_lossless.webp", saved(rgb(), "WEBP", lossless=True))
    add("webp_lossless_alpha.webp", saved(Image.fromarray(alpha(scene())), "WEBP", lossless=True, exact=True))
    add("webp_lossy.webp", saved(rgb(), "WEBP", quality=90))
    add("webp_lossy_odd.webp", saved(rgb(width=19, height=11), "WEBP", quality=90))
    add("webp_lossy_alpha.webp", saved(Image.fromarray(alpha(scene())), "WEBP", quality=90))
    for value in (1, 2, 5, 6):
        add(f"webp_orientation_{value}.webp", saved(rgb(), "WEBP", lossless=True, exif=oriented(value)))
    add("webp_orientation_named.webp", saved(rgb(), "WEBP", lossless=True, exif=b"Exif\0\0" + oriented(6).removeprefix(b"Exif\0\0")))
    add("webp_orientation_xmp.webp", saved(rgb(), "WEBP", lossless=True, xmp=xmp(8)))


def movement(count=3):
    """Frames of which a part changes."""
    frames = []
    for index in range(count):
        levels = scene()
        levels[1 + index : 5 + index, 1 + 3 * index : 5 + 3 * index] = (30 * index, 255 - 50 * index, 128)
        frames.append(levels)
    return frames


def animated(frames, kind, **how):
    images = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames]
    return saved(images[0], kind, save_all=True, append_images=images[1:], **how)


def holes(frames):
    """Frames with a part that is wholly transparent."""
    out = []
    for index, levels in enumerate(frames):
        see = np.full(levels.shape[:2], 255, np.uint8)
        see[:2] = 0
        see[:, 3 * index : 3 * index + 2] = 0
        out.append(np.concatenate([levels, see[..., None]], axis=-1))
    return out


def webp_parts():
    """An animation whose parts are cleared, laid over others and replaced: what Pillow does not write by itself."""
    levels = scene(width=6, height=4, shift=3)
    seen = np.concatenate([levels, (np.indices((4, 6)).sum(0) * 28).astype(np.uint8)[..., None]], axis=-1)
    lossless = dict(lossless=True, exact=True)
    parts = [  # left, top, clear, replace, picture, how it is stored
        (0, 0, False, True, scene(), lossless),
        (2, 2, True, False, levels, dict(quality=90)),
        (4, 4, True, False, seen, lossless),
        (0, 2, False, True, seen, dict(quality=90)),
        (6, 0, True, False, seen, dict(quality=90)),
        (2, 0, False, False, levels, lossless),
    ]

    def piece(name, content):
        return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def three(number):
        return struct.pack("<I", number)[:3]

    frames = b""
    for left, top, clear, replace, picture, how in parts:
        data = saved(Image.fromarray(picture), "WEBP", **how)[12:]
        if data.startswith(b"VP8X"):
            data = data[18:]
        height, width = picture.shape[:2]
        head = b"".join(map(three, (left // 2, top // 2, width - 1, height - 1, 100))) + bytes([replace * 2 + clear])
        frames += piece(b"ANMF", head + data)
    extended = piece(b"VP8X", b"\x12\0\0\0" + three(WIDTH - 1) + three(HEIGHT - 1))
    return b"RIFF" + piece(b"", b"WEBP" + extended + piece(b"ANIM", b"\xff\x80\x40\xff\0\0") + frames)


def animations():
    add("webp_parts.webp", webp_parts())
    even, uneven = [100] * 3, [50, 300, 20]
    quantised = [np.asarray(Image.fromarray(frame).quantize(32).convert("RGB")) for frame in movement()]
    for name, times in {"even": even, "uneven": uneven}.items():
        add(f"gif_{name}.gif", animated(quantised, "GIF", duration=times, loop=0))
        add(f"apng_{name}.png", animated(movement(), "PNG", duration=times, loop=0))
        add(f"webp_{name}.webp", animated(movement(), "WEBP", lossless=True, duration=times, loop=0))
    add("webp_animated_lossy.webp", animated(movement(), "WEBP", quality=90, duration=even, loop=0))
    add("webp_animated_holes.webp", animated(holes(movement()), "WEBP", lossless=True, exact=True, duration=even, loop=0))
    for disposal in range(3):
        for blend in range(2):
            how = dict(duration=even, loop=0, disposal=disposal, blend=blend)
            add(f"apng_disposal_{disposal}_blend_{blend}.png", animated(holes(movement()), "PNG", **how))
    add("apng_grey.png", animated([frame[..., 0] for frame in movement()], "PNG", duration=even, loop=0))
    add("apng_beside.png", animated([scene(shift=5)] + movement(), "PNG", duration=even, loop=0, default_image=True))
    for disposal in range(4):
        add(f"gif_disposal_{disposal}.gif", animated(quantised, "GIF", duration=even, loop=0, disposal=disposal))
        add(f"gif_holes_disposal_{disposal}.gif", animated(holes(quantised), "GIF", duration=even, loop=0, disposal=disposal))
    add("apng_orientation_6.png", animated(movement(), "PNG", duration=even, loop=0, exif=oriented(6)))
    add("webp_animated_orientation_6.webp", animated(movement(), "WEBP", lossless=True, duration=even, loop=0, exif=oriented(6)))
    parts = [Image.fromarray(frame) for frame in holes(movement())]
    mixed = saved(parts[0], "PNG", save_all=True, append_images=parts[1:], duration=even, loop=0, disposal=[1, 2, 0], blend=[0, 1, 1])
    add("apng_mixed.png", mixed)
    add("gif_still.gif", saved(Image.fromarray(quantised[0]), "GIF"))
    add("gif_still_hole.gif", saved(Image.fromarray(holes(quantised)[0]), "GIF"))
    add("gif_grey.gif", saved(Image.fromarray(scene()[..., 0]), "GIF"))


def avifs():
    add("avif_444.avif", saved(rgb(), "AVIF", quality=95, subsampling="4:4:4"))
    add("avif_420_smooth.avif", saved(smooth(), "AVIF", quality=95, subsampling="4:2:0"))
    add("avif_alpha.avif", saved(Image.fromarray(alpha(scene())), "AVIF", quality=95, subsampling="4:4:4"))
    add("avif_orientation_6.avif", saved(rgb(), "AVIF", quality=95, subsampling="4:4:4", exif=oriented(6)))
    add("avif_orientation_2.avif", saved(rgb(), "AVIF", quality=95, subsampling="4:4:4", exif=oriented(2)))
    add("avif_even.avif", animated(movement(), "AVIF", quality=95, subsampling="4:4:4", duration=[100] * 3))


if __name__ == "__main__":
    jpegs()
    pngs()
    webps()
    animations()
    avifs()
    TARGET.parent.mkdir(exist_ok=True)
    save_file(files, TARGET, dict(sorted(metadata.items())))
    print(f"{TARGET}: {len([name for name in files if '|' not in name])} files, {TARGET.stat().st_size} bytes")
