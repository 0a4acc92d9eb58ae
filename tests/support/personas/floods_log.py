"""Writes far more than anybody reads: many lines, one endless line, and bytes that are no UTF-8."""

import sys

import modal

app = modal.App("floods-log")


@app.function()
@modal.fastapi_endpoint()
def f(lines: int = 100_000):
    for number in range(lines):
        print(f"line {number} " + "x" * 80)
    sys.stdout.write("y" * 1_000_000)
    sys.stdout.flush()
    sys.stdout.buffer.write(b"\n\xff\xfe not text\n")
    sys.stdout.buffer.flush()
    print("the last line")
    return lines
