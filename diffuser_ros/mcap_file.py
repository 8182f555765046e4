"""Reading MCAP files, whole, cut off or damaged: run logs and ROS 2 bags.

A file that was cut off, since its writer was killed or the disk was full, is read up to its last complete chunk. A file in
which bytes have changed is refused: chunks carry checksums, and so does the whole of a run log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import zstandard
from mcap.exceptions import EndOfFile, McapError
from mcap.records import Channel, Chunk, DataEnd, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap_ros2.decoder import DecoderFactory

__all__ = ['Entry', 'McapFile', 'RunLogError']

MAGIC = b'\x89MCAP0\r\n'
"""First and last bytes of a complete file (MCAP's specification)."""
LARGEST_CHUNK = 1 << 28
"""Bytes of a chunk when unpacked, beyond which it is taken for damaged; usual are one to some millions."""


class RunLogError(ValueError):
    """A run log or bag that cannot be written or read; the message is one sentence that says which and why."""


class Entry(NamedTuple):
    """A message of a file: its topic and type ('package/msg/Name'), when it was logged [ns], and its fields as attributes."""

    topic: str
    type: str
    time: int
    message: Any


class _Exact:
    """What `StreamReader` needs of a file; EndOfFile, before anything is allocated, for more bytes than are left."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = stream.seek(0, 2)
        stream.seek(max(0, self._left - len(MAGIC)))
        self.ended = stream.read() == MAGIC
        stream.seek(0)

    def read(self, length: int) -> bytes:
        if length > self._left:
            raise EndOfFile
        self._left -= length
        return self._stream.read(length)


class McapFile:
    """Iterates, once, over the ROS 2 messages of a file in the order in which they were written; RunLogError if it is damaged.

    stream    a file opened for reading, or BytesIO
    name      what messages to people call it
    types     the types wanted, 'package/msg/Name'; others are passed over
    strict    whether the file must say a checksum of the whole, if it is complete
    complete  known at the end: False if the file was cut off
    """

    def __init__(self, stream: BinaryIO, name: str, types: Collection[str], *, strict: bool = False) -> None:
        self.name, self.complete = name, False
        self._stream, self._types, self._strict = stream, types, strict
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}

    def __iter__(self) -> Iterator[Entry]:
        entries = self._entries()
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except RunLogError:
                raise
            except Exception as error:  # whatever a parser makes of changed bytes: it comes to the same for the reader
                raise RunLogError(f'{self.name} is damaged: {str(error) or type(error).__name__}') from error
            yield entry

    def _entries(self) -> Iterator[Entry]:
        stream = _Exact(self._stream)
        try:
            for record in StreamReader(stream, emit_chunks=True, validate_crcs=True).records:  # type: ignore[arg-type]
                if isinstance(record, DataEnd):
                    if self._strict and record.data_section_crc == 0:
                        raise McapError('it lacks its checksum')
                    self.complete = True
                    return  # what follows is an index
                for part in _unpacked(record) if isinstance(record, Chunk) else [record]:
                    yield from self._entry(part)
        except EndOfFile:
            if stream.ended:
                raise McapError('a length in it points beyond its end') from None

    def _entry(self, record: McapRecord) -> Iterator[Entry]:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._channels[record.id] = record
        elif isinstance(record, Message):
            channel = self._channels[record.channel_id]
            schema = self._schemas.get(channel.schema_id)
            if schema is None or schema.name not in self._types:
                return
            decode = _decoder(channel.message_encoding, schema.name, schema.encoding, schema.data)
            if decode is None:
                raise RunLogError(f'{self.name} has the topic {channel.topic} in the encoding {schema.encoding}; only messages '
                                  "described by 'ros2msg' can be read")
            yield Entry(channel.topic, schema.name, record.log_time, decode(record.data))


@lru_cache(maxsize=64)
def _decoder(encoding: str, name: str, schema_encoding: str, definition: bytes) -> Callable[[bytes], Any] | None:
    """Made once a type: parsing the definition takes longer than decoding many messages."""
    return DecoderFactory().decoder_for(encoding, Schema(data=definition, encoding=schema_encoding, id=0, name=name))


def _unpacked(chunk: Chunk) -> list[McapRecord]:
    size = chunk.uncompressed_size
    if chunk.compression == 'zstd':
        size = max(size, zstandard.frame_content_size(chunk.data))  # zstandard allocates what the data say, not `size`
    if size > LARGEST_CHUNK:
        raise McapError(f'a chunk says that it holds {size} bytes')
    return breakup_chunk(chunk, validate_crc=True)
