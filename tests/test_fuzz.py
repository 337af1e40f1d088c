"""Short runs of the fuzz targets: random damage to their seeds. `make fuzz` runs them for long.

What long runs found stands in FOUND, a case each.
"""

import base64
import random
import zlib

import pytest
from benchmarks.fuzz import TARGETS

ROUNDS = 150
# A column's name that is not UTF-8.
PARQUET = (
    "c-n1I!A=4(5S?Ai1``fIoK2hbum{<200a#jjF%}wG-5;&qVZrtNW+?dtjj8Xj0X?i{YBda@!~s7r!()pnY2S1wUF"
    "T<RtM&QGC=t}2LO?t&zCkyBb{gjETdmDj3RpI$qrO=S%c>?VyR@9`+;jBbDTXFnW(jad#h=r7ZY>=3l*2MZ~dNDU"
    "?2_6XF>`Yg2aMogI5%srKXFn&-@R^|8l}XnE!8%uv>t&1hb3_Xa0fkL<r298YK(!Mh!yp0*yvDcc+^j_@{GZaY7c"
    "iw80h8n$(Q?L^JBnvYJvv*EZ=AU1o*9)1YU=c$<x_&gd_!Pv)z(&eZE?Ots#LXg69lAMT^(?_F*Cz=L>_yu9kPK8"
    "@r0BuSR*;7up1r{!~S+-Wo$Eg|jOJvsnG^KU;0lU?5"
)
FOUND = {"parquet": [zlib.decompress(base64.b85decode(PARQUET))]}


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat, insert: one to four times."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + chance.randrange(40)]
        elif kind == 3:
            data[at:at] = chance.choice(TOKENS)
        else:
            data[at:at] = chance.randbytes(chance.randrange(1, 5))
    return bytes(data)


TOKENS = (
    b"[INST]", b"[/INST]", b"<eos>", b"<0x41>", b"\n", b"\r\n", b'"', b"{", b"[[[[", b"null", b"-1",
    b"1e999", b"NaN", b"\\ud800", b"\xff", b"\xf0\x9f\x98", "​猫".encode(), b"\0", b"9" * 30,
)  # fmt: skip


@pytest.mark.parametrize("prepare", TARGETS, ids=lambda target: target.__name__)
def test_random_damage_is_refused_in_a_line_or_harmless(prepare, tmp_path):
    target, seeds = prepare(tmp_path)
    chance = random.Random(prepare.__name__)
    for seed in seeds:
        target(seed)
    for data in FOUND.get(prepare.__name__, []):
        target(data)
    for _ in range(ROUNDS):
        target(mutated(chance.choice(seeds), chance))
