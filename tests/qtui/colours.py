"""How colours are seen: contrast, distance, and with one kind of cone missing."""

from __future__ import annotations

from rich.color import Color, ColorSystem

VISIONS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
"""On linear RGB: Machado, Oliveira and Fernandes (2009), table 1, severity 1.0."""


def linear(color: str) -> tuple[float, float, float]:
    """Linear RGB of ``#rrggbb`` (IEC 61966-2-1)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return red, green, blue


def luminance(color: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.1)."""
    red, green, blue = linear(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio, 1 to 21 (WCAG 2.1)."""
    light, dark = sorted((luminance(one), luminance(other)))[::-1]
    return (light + 0.05) / (dark + 0.05)


def lab(color: str, vision: str = "full") -> tuple[float, float, float]:
    """CIE 1976 L*a*b* under D65, as somebody of that vision sees the colour."""
    rgb = linear(color)
    seen = [
        min(1.0, max(0.0, sum(a * b for a, b in zip(row, rgb, strict=True))))
        for row in VISIONS[vision]
    ]
    xyz = (
        (0.4124564, 0.3575761, 0.1804375),
        (0.2126729, 0.7151522, 0.0721750),
        (0.0193339, 0.1191920, 0.9503041),
    )
    white = (0.95047, 1.0, 1.08883)
    x, y, z = (
        _root(sum(a * b for a, b in zip(row, seen, strict=True)) / unit)
        for row, unit in zip(xyz, white, strict=True)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _root(share: float) -> float:
    return share ** (1 / 3) if share > 216 / 24389 else (24389 / 27 * share + 16) / 116


def distance(one: str, other: str, vision: str = "full") -> float:
    """ΔE*ab of two colours (CIE 1976); 2.3 can just be told apart."""
    parts = zip(lab(one, vision), lab(other, vision), strict=True)
    return float(sum((a - b) ** 2 for a, b in parts) ** 0.5)


def chroma(color: str) -> float:
    """How vivid a colour is, 0 for grey."""
    _, a, b = lab(color)
    return float((a * a + b * b) ** 0.5)


def in_256(color: str) -> str:
    """The colour that a terminal of 256 is sent in its place."""
    return Color.parse(color).downgrade(ColorSystem.EIGHT_BIT).get_truecolor().hex
