"""Vector instructions, for code that Python's loops do not become by themselves."""

from dataclasses import dataclass
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils as numba_cgutils

from worker.model.fused.jit import DOT, LANES

GROUP: Final = 32  # numbers of a row that share a scale; the groups of GGUF's Q4 blocks too

I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
FLOAT: Final = ir.FloatType()
HALF: Final = ir.HalfType()
FLOATS: Final = ir.VectorType(FLOAT, LANES)
HALVES: Final = ir.VectorType(HALF, LANES)
INTS: Final = ir.VectorType(I32, LANES)
BYTES: Final = ir.VectorType(I8, LANES)
_WORDS: Final = ir.VectorType(ir.IntType(16), 2 * LANES)

Value = Any  # an LLVM value
cgutils: Any = numba_cgutils  # numba has types, but not there


@dataclass(frozen=True, slots=True)
class Emitter:
    """Single instructions. Addresses are 64-bit integers."""

    builder: Any

    def add(self, value: Value, offset: Value | int) -> Value:
        """Add a value or a constant."""
        if isinstance(offset, int):
            return self.builder.add(value, I64(offset)) if offset else value
        return self.builder.add(value, offset)

    def sum(self, value: Value, *offsets: Value | int) -> Value:
        """Add them all."""
        for offset in offsets:
            value = self.add(value, offset)
        return value

    def mul(self, value: Value, factor: Value | int) -> Value:
        """Multiply with a value or a constant."""
        return self.builder.mul(value, I64(factor) if isinstance(factor, int) else factor)

    def load(self, kind: Any, address: Value, offset: int = 0) -> Value:
        """Load a value, aligned or not."""
        pointer = self.builder.inttoptr(self.add(address, offset), kind.as_pointer())
        return self.builder.load(pointer, typ=kind, align=1)

    def store(self, value: Value, address: Value, offset: int = 0) -> None:
        """Store a value, aligned or not."""
        pointer = self.builder.inttoptr(self.add(address, offset), value.type.as_pointer())
        self.builder.store(value, pointer, align=1)

    def variables(self, rows: int, vectors: int, kind: Any) -> list[list[Value]]:
        """Return a tile of variables, zero at first, that the compiler makes registers."""
        tile = [
            [cgutils.alloca_once(self.builder, kind) for _ in range(vectors)] for _ in range(rows)
        ]
        for line in tile:
            for variable in line:
                self.builder.store(self.zero(kind), variable)
        return tile

    def get(self, variable: Value) -> Value:
        """Read one of ``variables``."""
        return self.builder.load(variable, typ=FLOATS)

    def put(self, variable: Value, value: Value) -> None:
        """Change one of ``variables``."""
        self.builder.store(value, variable)

    def constant(self, kind: Any, number: float) -> Value:
        """Return a number, or a vector whose lanes all have it."""
        is_vector = isinstance(kind, ir.VectorType)
        return ir.Constant(kind, [number] * kind.count if is_vector else number)

    def zero(self, kind: Any) -> Value:
        """Return a vector of zeros."""
        return ir.Constant(kind, None)

    def splat_float(self, address: Value) -> Value:
        """Load a float into all lanes."""
        return self.splat(self.load(FLOAT, address), FLOATS)

    def splat_int(self, address: Value) -> Value:
        """Load an integer, or four bytes, into all lanes."""
        return self.splat(self.load(I32, address), INTS)

    def splat(self, scalar: Value, kind: Any) -> Value:
        """Put a number into all lanes of a vector of this kind."""
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nothing, scalar, I32(0))
        return self.builder.shuffle_vector(one, nothing, self.zero(INTS))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a * b + c."""
        return self._call(f"llvm.fmuladd.v{LANES}f32", FLOATS, [a, b, c])

    def transpose(self, lines: list[Value]) -> list[Value]:
        """Return the columns of as many vectors as a vector has lanes."""
        half = LANES // 2
        # Vectors i and i + half become neighbours, lane by lane; log2(LANES) times.
        low, high = (
            ir.Constant(INTS, [start + n // 2 + n % 2 * LANES for n in range(LANES)])
            for start in (0, half)
        )
        for _ in range(LANES.bit_length() - 1):
            pairs = list(zip(lines[:half], lines[half:], strict=True))
            lines = [self.builder.shuffle_vector(*pair, m) for pair in pairs for m in (low, high)]
        return lines

    def bits(self, numbers: Value) -> Value:
        """Look at floats as integers."""
        return self.builder.bitcast(numbers, INTS)

    def greater(self, a: Value, b: Value) -> Value:
        """Return the greater of two vectors of integers, lane by lane."""
        return self._call(f"llvm.smax.v{LANES}i32", INTS, [a, b])

    def turned(self, lanes: Value, distance: int) -> Value:
        """Return a vector whose every lane is the one so many further."""
        places = ir.Constant(INTS, [(lane + distance) % LANES for lane in range(LANES)])
        return self.builder.shuffle_vector(lanes, lanes, places)

    def prefetch(self, address: Value, locality: int = 3) -> None:
        """Ask for a cache line that will be read soon; any address is allowed.

        ``locality`` 3 brings it into the first cache, 2 into the second.
        """
        pointer = I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        place = self.builder.inttoptr(address, pointer)
        self.builder.call(function, [place, I32(0), I32(locality), I32(1)])

    def float(self, numbers: Value) -> Value:
        """Turn integers into floats."""
        return self.builder.sitofp(numbers, FLOATS)

    def widen(self, numbers: Value) -> Value:
        """Turn half floats into floats."""
        return self.builder.fpext(numbers, FLOATS)

    def low(self, pairs: Value) -> Value:
        """Return the lower nibbles as bytes."""
        return self.builder.and_(pairs, self._ints(0x0F0F0F0F))

    def high(self, pairs: Value) -> Value:
        """Return the upper nibbles as bytes."""
        return self.low(self.builder.lshr(pairs, self._ints(4)))

    def dot(self, sums: Value, weights: Value, row: Value) -> Value:
        """Add to every lane the products of its four unsigned bytes and four signed ones."""
        if DOT == "dot":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
            return self._call(name, INTS, [sums, weights, row])
        if DOT == "madd":
            return self._dot_of_words(sums, weights, row)
        b = self.builder
        for place in range(4):
            weight = b.and_(b.lshr(weights, self._ints(8 * place)), self._ints(255))
            number = b.ashr(b.shl(row, self._ints(24 - 8 * place)), self._ints(24))
            sums = b.add(sums, b.mul(weight, number))
        return sums

    def _dot_of_words(self, sums: Value, weights: Value, row: Value) -> Value:
        b = self.builder
        eight = ir.Constant(_WORDS, [8] * (2 * LANES))
        name = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
        wide = b.bitcast(row, _WORDS)
        for weight, number in (
            (weights, b.ashr(b.shl(wide, eight), eight)),
            (b.lshr(weights, self._ints(8)), b.ashr(wide, eight)),
        ):
            word = b.bitcast(b.and_(weight, self._ints(0x00FF00FF)), _WORDS)
            sums = b.add(sums, self._call(name, INTS, [word, number]))
        return sums

    def _call(self, name: str, result: Any, values: list[Value]) -> Value:
        kind = ir.FunctionType(result, [value.type for value in values])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, values)

    def _ints(self, number: int) -> Value:
        return self.constant(INTS, number)
