"""Changes to valid inputs: bytes, YAML and JSON text, safetensors, HDF5 and run logs, each by what its format is made of."""

from __future__ import annotations

import io
import json
import random
import re
import struct
from collections.abc import Callable, Sequence

import h5py
import numpy as np
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

__all__ = ['Mutation', 'mutated_bytes', 'mutated_hdf5', 'mutated_log', 'mutated_safetensors', 'mutated_text', 'spliced']

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
LAUGHS = 'a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n' + ''.join(
    f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 20))
"""9^20 words in 20 lines."""
DEEP = 3000
SCALARS = (
    '', '~', 'null', 'true', 'no', '-1', '0', '1', '2', '7', '1000', '2147483648', '9223372036854775808',
    '-9223372036854775809', '1' + 30 * '0', '0x' + 'f' * 5000, '9' * 5000, '0x', '0x7fffffff',
    '0b2', '0o9', '1_000', '190:20:30', '1e308', '1e400', '-0.0', '1e-320', '.nan',
    '.inf', '-.inf', 'NaN', 'Infinity', '2001-13-45', '2001-01-01 25:61:61', '2001-12-14t21:59:43.10-05:00', "''", '"\\ud800"',
    '"\\0"', '"\\x41"', 'x', 'x' * 10000, '\u202e\u0000', '\ufeff', '\U0001f600' * 50, '"é\u0301"', '[]', '{}', '[[]]', '[1, x]',
    '{a: b}', '[' * DEEP, '{a: ' * DEEP, '[' * 200 + ']' * 200, '[' * DEEP + ']' * DEEP, '- ' * DEEP,
    '!!python/object/apply:os.getcwd []', '!!binary x',
    '!!binary YQ==', '!!set {a}', '!!int x', '!!float x', '!!timestamp x', '!!bool x', '!!omap [a]', '!!pairs [a]', '!unknown x',
    '&a [*a]', '*a', '&a', '<<', '{<<: x}', '{<<: [x]}', '{[a]: b}', '{{a: b}: c}', '{? [a] : b}', '|', '>\n  x', '%', '@', '`',
    '---', '...', '--- a\n--- b', '\t', '# x', '"', "'", '[1, 2, 4, 8]', '[0]', '[-8]', '[1' + ', 1' * DEEP + ']',
    '../../etc/passwd',
)
ANY_SCALAR = re.compile(r'(?<=[:,\[{] )[^\s,\[\]{}][^\n,\[\]{}]*|(?<=- )[^\n{\[]+')


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to eight changes: bits, bytes, numbers of 1 to 8 bytes, runs taken away, doubled, put elsewhere, the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            number = (rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
            out[at:at + width] = number.to_bytes(width, rng.choice(('little', 'little', 'big')))
        elif kind == 3:
            del out[at:at + size]
        elif kind == 4:
            out[at:at] = out[at:at + size]
        elif kind == 5:
            out[at:at] = rng.randbytes(size)
        elif kind == 6:
            origin = rng.randrange(len(out) + 1)
            out[at:at + size] = out[origin:origin + size]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def mutated_text(rng: random.Random, data: bytes) -> bytes:
    """Text of YAML or JSON with one to four values, keys or lines changed; at times its bytes, or with a bomb of aliases."""
    if rng.random() < 0.15:
        return mutated_bytes(rng, data)
    text = data.decode()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.randrange(10)
        found = list(ANY_SCALAR.finditer(text))
        lines = text.split('\n')
        n = rng.randrange(len(lines))
        if kind < 6 and found:
            here = rng.choice(found)
            written = rng.choice(SCALARS) if rng.random() < 0.85 else rng.choice(found).group()
            text = text[:here.start()] + written + text[here.end():]
        elif kind == 6:
            lines[n:n + 1] = rng.choice(([], [lines[n]] * 2, [rng.choice(lines)], ['  ' + lines[n]], [lines[n].lstrip()]))
            text = '\n'.join(lines)
        elif kind == 7:
            lines.insert(n, f'{rng.choice(("x", "<<", "? [a]", "1", "null", "é", "*a"))}: {rng.choice(SCALARS)}')
            text = '\n'.join(lines)
        elif kind == 8:
            text = text.replace(':', rng.choice((':', ' :', '::', ': &b', ': *b')), rng.choice((1, 3)))
        elif rng.random() < 0.3 and found:
            here = rng.choice(found)
            text = LAUGHS + text[:here.start()] + f'*a{rng.choice((1, 5, 19))}' + text[here.end():]
    return text.encode('utf-8', 'surrogatepass')


def mutated_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with its header's length, types, shapes, offsets or names changed, or its numbers, or its bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, data)
    (length,) = struct.unpack('<Q', data[:8])
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(header))
        entry, kind = header[name], rng.randrange(9)
        if not isinstance(entry, dict) or 'shape' not in entry:
            continue
        if kind == 0:
            entry['dtype'] = rng.choice(('F64', 'F16', 'BF16', 'I64', 'I32', 'I8', 'U8', 'BOOL', 'F8_E4M3', 'C64', 'X', '', None))
        elif kind == 1:
            entry['shape'] = rng.choice(([], [0], [-1], [1 << 40], [1 << 63], [1 << 32, 1 << 32], [1.5], ['1'], [1] * 5000, None,
                                         entry['shape'][::-1], [*entry['shape'], 1], [int(np.prod(entry['shape']))]))
        elif kind == 2:
            first, end = entry['data_offsets']
            entry['data_offsets'] = rng.choice(([end, first], [first, first], [first, end + 4], [first + 4, end + 4], [0, end],
                                                [0, 1 << 63], [-4, end], [first], [], None, ['0', '4'], [first, end, end]))
        elif kind == 3:
            header[rng.choice(('', 'x', name + '.x', '\u202e', '__metadata__', 'x' * 100000))] = header.pop(name)
        elif kind == 4:
            del header[name]
        elif kind == 5:
            header['__metadata__'] = rng.choice(({'a': 'b'}, {'a': 1}, [], 'x', None, {'a': 'x' * 100000}))
        elif kind == 6:
            header['x'] = dict(entry)
        elif kind == 7 and len(body) >= 4:
            at = 4 * rng.randrange(len(body) // 4)
            body = body[:at] + struct.pack('<f', rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))) + body[at + 4:]
        else:
            body = rng.choice((body[:-4], body + bytes(4), b'', body[:rng.randrange(len(body) + 1)]))
    written = json.dumps(header).encode()
    if rng.random() < 0.1:
        written = rng.choice((b'[' * 100000, written[:-1], written + b' ' * 100, b'{}', b'', b'\xff', b'{"a":' * 5000))
    length = rng.choice(NUMBERS) if rng.random() < 0.1 else len(written)
    return struct.pack('<Q', length) + written + body


def _arrays(rng: random.Random, before: np.ndarray) -> list[np.ndarray]:
    """What could stand in place of an array."""
    spoilt = before.astype(np.float64)
    if spoilt.size:
        spoilt.flat[rng.randrange(spoilt.size)] = rng.choice((np.nan, np.inf, -1.0, 1e300, 1e30, 7.0))
    return [spoilt, before[:0], before[:1], before[:-1], np.concatenate([before, before]), before[..., None], before.ravel(),
            before.reshape(-1)[:1].reshape(()), before.astype(np.complex64), before.astype('S4'), before.astype(np.int8),
            before != 0, np.full(before.shape, -1, dtype=np.int64), np.full(before.shape, 1 << 62),
            spoilt[:, :1] if spoilt.ndim > 1 else spoilt]


def mutated_hdf5(rng: random.Random, data: bytes) -> bytes:
    """An HDF5 file with an array of another shape, type or size, missing, elsewhere, or linked to elsewhere; or with its bytes
    changed."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, data)
    image = io.BytesIO(data)
    with h5py.File(image, 'r+') as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not names:
                break
            name = rng.choice(names)
            names = [other for other in names if other != name and not other.startswith(name + '/')]
            found, kind = file[name], rng.randrange(10)
            group = isinstance(found, h5py.Group)
            if kind < 4 and not group:
                _replace(rng, file, name, rng.choice(_arrays(rng, found[()])))
            elif kind == 4:
                del file[name]
            elif kind == 5:
                file.move(name, rng.choice(('x', 'episode_', name)) + str(rng.random()))
            elif kind == 6 and not group:
                del file[name]
                file.create_group(name)
            elif kind == 7 and not group:
                del file[name]
                shape = rng.choice(((1 << 40,), (1 << 34, 39), (1 << 20, 1 << 20), (1 << 62,), (0,), ()))
                chunks = tuple(min(1024, size) for size in shape) if shape and shape[0] else None
                file.create_dataset(name, shape, rng.choice(('f4', 'i8', '?')), chunks=chunks)
            elif kind == 8:
                del file[name]
                file[name] = rng.choice((h5py.SoftLink('/' + name), h5py.SoftLink('/nowhere'), h5py.SoftLink('/'),
                                         h5py.ExternalLink('/etc/hostname', '/'), h5py.ExternalLink('missing.hdf5', '/x')))
            else:
                found.attrs[rng.choice((*found.attrs, 'id', 'x'))] = rng.choice((-1, 1 << 62, 'x', np.nan, np.zeros(3), b'\xff'))
    return image.getvalue()


def mutated_log(rng: random.Random, data: bytes) -> bytes:
    """A run log with damaged bytes, which its checksums find; or, one time in two, a sound file that holds a damaged message."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, data)
    messages = [(schema, channel, message.data) for schema, channel, message in make_reader(io.BytesIO(data)).iter_messages()]
    damaged = rng.randrange(len(messages))
    stream = io.BytesIO()
    writer = Writer(stream, compression=rng.choice((CompressionType.NONE, CompressionType.ZSTD)))
    writer.start(profile='ros2')
    channels: dict[int, int] = {}
    for number, (schema, channel, payload) in enumerate(messages):
        if channel.id not in channels:
            kind = writer.register_schema(schema.name, schema.encoding, schema.data)
            channels[channel.id] = writer.register_channel(channel.topic, channel.message_encoding, kind)
        if number == damaged:
            payload = mutated_bytes(rng, payload)
        writer.add_message(channels[channel.id], number, payload, number)
    writer.finish()
    return stream.getvalue()


def _replace(rng: random.Random, file: h5py.File, name: str, array: np.ndarray) -> None:
    del file[name]
    if rng.random() < 0.1:
        file.create_dataset(name, data=['a', 'é', ''] * max(1, len(array.ravel()) // 3), dtype=h5py.string_dtype())
    else:
        file[name] = array


def spliced(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """The beginning of one input and the end of another."""
    first, second = rng.choice(seeds), rng.choice(seeds)
    return first[:rng.randrange(len(first) + 1)] + second[rng.randrange(len(second) + 1):]
