"""What the benchmarks write into pages of docs/."""


def put(path, mark, text):
    """Puts a text between the two marks of a page, in the place of what is there."""
    with open(path) as file:
        before, _, after = file.read().split(mark)
    with open(path, "w") as file:
        file.write(f"{before}{mark}\n{text}{mark}{after}")
