"""Format sizes and durations for people."""


def format_bytes(count: int) -> str:
    """Return `35.2 kB`, `165.4 MB`, `1.5 GB` or `2.0 TB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def format_time(seconds: float) -> str:
    """Return `45.0s`, `37.8m` or `2.5h`, as the progress bar shows it."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{seconds / 60:.1f}m"
    return f"{seconds / 3600:.1f}h"


def format_duration(seconds: float) -> str:
    """Return `45s`, `2m 10s`, `35m`, `3h 05m` or `2d 4h`, as charts and the page show it."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if minutes < 10:
        return f"{minutes}m {whole % 60:02d}s"
    if hours < 1:
        return f"{minutes}m"
    return f"{hours}h {minutes % 60:02d}m" if days < 2 else f"{days}d {hours % 24}h"
