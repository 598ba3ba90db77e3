"""Prints what protoc makes of tidings_v1.proto: its descriptor, from which messages are built when they are needed.

``python -m scripts.grpc_descriptor > src/tidings/transports/grpc/tidings_v1.descriptor``, after every change.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

FOLDER = Path(__file__).parents[1] / "src" / "tidings" / "transports" / "grpc"
PROTO = "tidings_v1.proto"


def descriptor() -> bytes:
    """A serialized ``FileDescriptorSet`` of one file."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "descriptor"
        if protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={made}", PROTO]):
            raise SystemExit(f"protoc refuses {PROTO}")
        return made.read_bytes()


if __name__ == "__main__":
    sys.stdout.buffer.write(descriptor())
