"""Numbers with their units, as people read them."""


def human_bytes(num_bytes: int) -> str:
    """Write a number of bytes in decimal units: `812 B`, `1.2 kB`, `3.4 MB`."""
    if abs(num_bytes) < 1000:
        return f"{num_bytes} B"
    amount, units = float(num_bytes), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = "B"
    # 999 950 B would be rounded to 1000.0 kB.
    while abs(amount) >= 999.95 and (larger := next(units, None)):
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}"


def human_percent(value: float | None) -> str:
    """Write a share as a percentage, or a dash for one that is not known."""
    return "-" if value is None else f"{100 * value:.1f} %"


def capitalised(text: str) -> str:
    """Write a text as a sentence or a title begins with it; what follows the first letter stays as it is."""
    return text[:1].upper() + text[1:]


def counted(number: int, noun: str) -> str:
    """Write a number of things: `1 error`, `1,200 errors`; the noun is one whose plural has an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
