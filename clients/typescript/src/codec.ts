/**
 * Codecs for the TLS presentation language: a `Codec` reads and writes one type, and functions build larger ones.
 *
 * Decoding gives a value or throws `WireError`, whatever the octets are. A value has exactly one encoding. An error
 * names the place and never repeats the octets.
 */

import { concat, type Octets } from "./octets.js";

const VECTOR_MAX = 2 ** 30 - 1;

/** The octets are not a valid encoding; `path` is the place, outermost field first. */
export class WireError extends Error {
  constructor(
    readonly reason: string,
    readonly path: readonly string[] = [],
  ) {
    super(path.length ? `${path.join(".")}: ${reason}` : reason);
    this.name = "WireError";
  }

  /** Returns the same error, with the enclosing place before its path. */
  within(place: string): WireError {
    return new WireError(this.reason, [place, ...this.path]);
  }
}

/** Runs `read`, and puts `place` before the path of its `WireError`. */
export function at<T>(place: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof WireError ? error.within(place) : error;
  }
}

/** A position in received octets; `end` is the end of the innermost vector. */
export class Reader {
  pos = 0;
  end: number;

  constructor(readonly data: Octets) {
    this.end = data.length;
  }

  /** Moves on by `size` octets and returns where they begin. */
  private skip(size: number): number {
    const start = this.pos;
    if (start + size > this.end) throw new WireError("truncated");
    this.pos = start + size;
    return start;
  }

  /** Returns a copy of the next `size` octets. */
  take(size: number): Octets {
    const start = this.skip(size);
    return this.data.slice(start, start + size);
  }

  /** Reads an unsigned integer of 1, 2 or 4 octets. */
  uint(size: number): number {
    const start = this.skip(size);
    let value = 0;
    for (let pos = start; pos < start + size; pos++) value = value * 256 + this.data[pos]!;
    return value;
  }

  /** Reads and checks the length of a `<V>` vector (RFC 9420 section 2.1.2); returns where the vector ends. */
  block(limit = VECTOR_MAX): number {
    const first = this.uint(1);
    const size = 1 << (first >> 6);
    if (size === 8) throw new WireError("length prefix is reserved");
    let length = first & 0x3f;
    for (let left = size - 1; left > 0; left--) length = length * 256 + this.uint(1);
    if (size > 1 && length < (size === 2 ? 0x40 : 0x4000)) {
      throw new WireError("length is not in its shortest form");
    }
    if (length > this.end - this.pos) throw new WireError("truncated");
    if (length > limit) throw new WireError(`longer than ${limit} octets`);
    return this.pos + length;
  }

  opaque(limit = VECTOR_MAX): Octets {
    const stop = this.block(limit);
    return this.take(stop - this.pos);
  }

  finish(): void {
    if (this.pos !== this.end) throw new WireError("trailing bytes");
  }
}

/** Collects octets that are written. */
export class Writer {
  private readonly parts: Uint8Array[] = [];

  put(...parts: readonly Uint8Array[]): void {
    this.parts.push(...parts);
  }

  uint(value: number | bigint, size: number): void {
    if (typeof value === "number" && !Number.isSafeInteger(value)) throw new RangeError("not an integer");
    let left = BigInt(value);
    if (left < 0n || left >> BigInt(8 * size)) throw new RangeError(`does not fit in ${size} octets`);
    const octets = new Uint8Array(size);
    for (let place = size - 1; place >= 0; place--) {
      octets[place] = Number(left & 0xffn);
      left >>= 8n;
    }
    this.parts.push(octets);
  }

  /** Writes a length in its shortest form. */
  length(value: number): void {
    if (value < 0x40) this.uint(value, 1);
    else if (value < 0x4000) this.uint(value | 0x4000, 2);
    else if (value <= VECTOR_MAX) this.uint(value + 0x80000000, 4);
    else throw new RangeError("a vector holds at most 2**30 - 1 octets");
  }

  opaque(octets: Uint8Array): void {
    this.length(octets.length);
    this.parts.push(octets);
  }

  octets(): Octets {
    return concat(...this.parts);
  }
}

/** How one type is read. */
export interface Readable<T> {
  readonly read: (reader: Reader) => T;
}

/** How one type is read and written. */
export class Codec<T> implements Readable<T> {
  constructor(
    readonly read: (reader: Reader) => T,
    readonly write: (value: T, out: Writer) => void,
    private readonly name?: string,
  ) {}

  /** Returns the value whose encoding is all of `octets`; throws `WireError` otherwise. */
  decode(octets: Uint8Array): T {
    const reader = new Reader(octets.buffer instanceof ArrayBuffer ? (octets as Octets) : new Uint8Array(octets));
    const read = (): T => {
      const value = this.read(reader);
      reader.finish();
      return value;
    };
    return this.name === undefined ? read() : at(this.name, read);
  }

  encode(value: T): Octets {
    const out = new Writer();
    this.write(value, out);
    return out.octets();
  }
}

/** A range of allowed numbers, both ends included. */
type Range = readonly [least: number, most: number];

/** `uint8` to `uint32`; a value outside `ranges` is refused where it is read. */
export function uint(size: number, most = 2 ** (8 * size) - 1, ranges?: readonly Range[]): Codec<number> {
  return new Codec(
    (reader) => {
      const value = reader.uint(size);
      if (value > most) throw new WireError(`larger than ${most}`);
      if (ranges && !ranges.some(([least, greatest]) => least <= value && value <= greatest)) {
        throw new WireError("value not allowed");
      }
      return value;
    },
    (value, out) => out.uint(value, size),
  );
}

/** `uint64`, as a bigint. */
export function uint64(most = 2n ** 64n - 1n): Codec<bigint> {
  return new Codec(
    (reader) => {
      const value = (BigInt(reader.uint(4)) << 32n) | BigInt(reader.uint(4));
      if (value > most) throw new WireError(`larger than ${most}`);
      return value;
    },
    (value, out) => out.uint(value, 8),
  );
}

/** A number of a closed enumeration. */
export function oneOf<T extends number>(size: number, values: Readonly<Record<string, T>>): Codec<T> {
  const allowed = new Set<number>(Object.values(values));
  return new Codec(
    (reader) => {
      const value = reader.uint(size);
      if (!allowed.has(value)) throw new WireError("value not allowed");
      return value as T;
    },
    (value, out) => out.uint(value, size),
  );
}

/** `opaque x[size]`. */
export function fixed(size: number): Codec<Octets> {
  return new Codec(
    (reader) => reader.take(size),
    (value, out) => {
      if (value.length !== size) throw new RangeError(`${size} octets needed, not ${value.length}`);
      out.put(value);
    },
  );
}

/** `opaque x<V>` of at most `limit` octets; with `sizes`, the number of octets must be one of these. */
export function opaque(limit = VECTOR_MAX, sizes?: readonly number[]): Codec<Octets> {
  return new Codec(
    (reader) => {
      const value = reader.opaque(limit);
      if (sizes && !sizes.includes(value.length)) throw new WireError("value not allowed");
      return value;
    },
    (value, out) => out.opaque(value),
  );
}

/** `opaque x<V>` with ASCII text of at most `limit` octets, all of which matches `form`. */
export function text(limit: number, form: RegExp): Codec<string> {
  return new Codec(
    (reader) => {
      const value = String.fromCharCode(...reader.opaque(limit));
      if (!form.test(value)) throw new WireError("value not allowed");
      return value;
    },
    (value, out) => {
      if (!form.test(value)) throw new RangeError("value not allowed");
      out.opaque(Uint8Array.from(value, (character) => character.charCodeAt(0)));
    },
  );
}

/** `T x<V>` of at most `most` items. */
export function vector<T>(item: Codec<T>, most = VECTOR_MAX): Codec<T[]> {
  return new Codec(
    (reader) => {
      const stop = reader.block();
      const outer = reader.end;
      reader.end = stop;
      const items: T[] = [];
      while (reader.pos < stop) {
        at(String(items.length), () => {
          if (items.length === most) throw new WireError(`more than ${most} items`);
          items.push(item.read(reader));
        });
      }
      reader.end = outer;
      return items;
    },
    (value, out) => {
      const block = new Writer();
      for (const each of value) item.write(each, block);
      out.opaque(block.octets());
    },
  );
}

/** `optional<T>` (RFC 9420 section 2.1.1); null if it is absent. */
export function optional<T>(item: Codec<T>): Codec<T | null> {
  return new Codec(
    (reader) => {
      const present = reader.uint(1);
      if (present > 1) throw new WireError("presence octet is neither 0 nor 1");
      return present ? item.read(reader) : null;
    },
    (value, out) => {
      out.uint(value === null ? 0 : 1, 1);
      if (value !== null) item.write(value, out);
    },
  );
}

/** The empty structure of a case of `select`. */
export const NOTHING: Codec<null> = new Codec(
  () => null,
  () => undefined,
);

/** The type of a codec's values. */
type ValueOf<C> = C extends Codec<infer T> ? T : never;

type AnyCodec = Codec<any>; // only the field at `on` tells which case this value belongs to

/** A field whose layout depends on an earlier field: `on` names that field, or a field within it. */
export class Select<T> {
  declare readonly valueType: T;

  constructor(
    private readonly on: string,
    private readonly cases: Readonly<Record<number, AnyCodec>>,
    private readonly otherwise?: AnyCodec,
  ) {}

  /** Returns the codec for the value of the earlier field; throws `WireError` if there is no case for the value. */
  choose(fields: Readonly<Record<string, unknown>>): AnyCodec {
    let value: unknown = fields;
    for (const part of this.on.split(".")) value = (value as Record<string, unknown>)[part];
    const found = this.cases[value as number] ?? this.otherwise;
    if (found === undefined) throw new WireError("no such case");
    return found;
  }
}

/** Declares a field whose layout is the case for the value of the field at `on`. */
export function select<C extends Readonly<Record<number, AnyCodec>>, O extends AnyCodec = never>(
  on: string,
  cases: C,
  otherwise?: O,
): Select<ValueOf<C[keyof C]> | ValueOf<O>> {
  return new Select(on, cases, otherwise);
}

/** A structure: its fields in order. */
export function struct<T extends object>(
  name: string,
  fields: { readonly [K in keyof T]: Codec<T[K]> | Select<T[K]> },
): Codec<T> {
  const names = Object.keys(fields) as (keyof T & string)[];
  const codecOf = (field: keyof T, value: T): Codec<T[keyof T]> => {
    const declared = fields[field];
    return declared instanceof Select ? declared.choose(value as Record<string, unknown>) : declared;
  };
  return new Codec(
    (reader) => {
      const value = {} as T;
      for (const field of names) {
        value[field] = at(onTheWire(field), () => codecOf(field, value).read(reader)) as T[typeof field];
      }
      return value;
    },
    (value, out) => {
      for (const field of names) codecOf(field, value).write(value[field], out);
    },
    name,
  );
}

/** Returns the name of a field as the specification writes it: `keyPackage` is key_package. */
function onTheWire(field: string): string {
  return field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Octets that are kept as they are; `inner` finds their end. */
export function octetsOf(inner: Readable<unknown>): Codec<Octets> {
  return new Codec(
    (reader) => {
      const start = reader.pos;
      inner.read(reader);
      return reader.data.slice(start, reader.pos);
    },
    (value, out) => out.put(value),
  );
}

/** A `<V>` vector whose content is not parsed; the value begins with the length. */
export const UNPARSED_VECTOR: Codec<Octets> = octetsOf(opaque());

export const UINT8 = uint(1);
export const UINT16 = uint(2);
export const UINT32 = uint(4);
export const UINT64 = uint64();
export const OPAQUE = opaque();
