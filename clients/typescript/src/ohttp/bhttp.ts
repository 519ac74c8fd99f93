/** Binary HTTP (RFC 9292): requests of known length are written, responses of either kind are read. */

import { at, Reader, WireError, Writer } from "../codec.js";
import { concat, type Octets } from "../octets.js";

/** A field line: its name in lower case, and its value, both in ASCII. */
export type Field = readonly [name: string, value: string];

export interface BinaryRequest {
  method: string;
  scheme: string;
  authority: string;
  /** With the query. */
  path: string;
  fields: readonly Field[];
  content: Octets;
}

export interface BinaryResponse {
  status: number;
  fields: Field[];
  content: Octets;
}

const REQUEST = 0;
const RESPONSE = 1;
const RESPONSE_OF_UNKNOWN_LENGTH = 3;
const MOST_LINES = 64;
const MOST_INTERIM = 8;
const CONTENT_OCTETS = 1 << 20;

/** Returns the encoded message, with all sections and without padding. */
export function encodeRequest(request: BinaryRequest): Octets {
  const out = new Writer();
  writeInteger(REQUEST, out);
  for (const part of [request.method, request.scheme, request.authority, request.path]) writeOpaque(ascii(part), out);
  const lines = new Writer();
  for (const line of request.fields) for (const part of line) writeOpaque(ascii(part), lines);
  writeOpaque(lines.octets(), out);
  writeOpaque(request.content, out);
  writeInteger(0, out); // no trailers
  return out.octets();
}

/** Returns the response in a message, padded or not; throws `WireError` if it is not valid. */
export function decodeResponse(message: Octets): BinaryResponse {
  return at("Response", () => {
    const reader = new Reader(message);
    const framing = at("framing", () => readInteger(reader));
    if (framing !== RESPONSE && framing !== RESPONSE_OF_UNKNOWN_LENGTH) {
      throw new WireError("not the framing indicator of a response", ["framing"]);
    }
    const known = framing === RESPONSE;
    let status = at("status", () => readInteger(reader));
    for (let interim = 0; status >= 100 && status <= 199; interim++) {
      if (interim === MOST_INTERIM) throw new WireError(`more than ${MOST_INTERIM}`, ["interim"]);
      at("interim", () => readFields(reader, known));
      status = at("status", () => readInteger(reader));
    }
    if (status < 200 || status > 599) throw new WireError("status not allowed");
    const more = (): boolean => reader.pos < reader.end; // empty sections at the end may be missing (section 3.8)
    const fields = more() ? at("fields", () => readFields(reader, known)) : [];
    const content = more() ? at("content", () => readContent(reader, known)) : new Uint8Array();
    if (more()) at("trailers", () => readFields(reader, known));
    if (message.subarray(reader.pos).some((octet) => octet !== 0)) throw new WireError("padding is not zero");
    return { status, fields, content };
  });
}

function readFields(reader: Reader, known: boolean): Field[] {
  const outer = reader.end;
  if (known) {
    const length = readInteger(reader);
    if (length > reader.end - reader.pos) throw new WireError("truncated");
    reader.end = reader.pos + length;
  }
  const fields: Field[] = [];
  while (!known || reader.pos < reader.end) {
    const name = readOpaque(reader);
    if (!name.length) {
      if (known) throw new WireError("field name is empty");
      break; // the terminator
    }
    if (fields.length === MOST_LINES) throw new WireError(`more than ${MOST_LINES} lines`);
    fields.push([latin1(name).toLowerCase(), latin1(readOpaque(reader))]);
  }
  reader.end = outer;
  return fields;
}

function readContent(reader: Reader, known: boolean): Octets {
  if (known) return readOpaque(reader);
  const chunks: Octets[] = [];
  for (let total = 0; ; ) {
    const chunk = readOpaque(reader);
    if (!chunk.length) return concat(...chunks);
    total += chunk.length;
    if (total > CONTENT_OCTETS) throw new WireError(`longer than ${CONTENT_OCTETS} octets`);
    chunks.push(chunk);
  }
}

function readOpaque(reader: Reader): Octets {
  const length = readInteger(reader);
  if (length > CONTENT_OCTETS) throw new WireError(`longer than ${CONTENT_OCTETS} octets`);
  return reader.take(length);
}

/** Reads an integer of 1, 2, 4 or 8 octets in any form (RFC 9000 section 16). */
function readInteger(reader: Reader): number {
  const first = reader.uint(1);
  let value = BigInt(first & 0x3f);
  for (let left = (1 << (first >> 6)) - 1; left > 0; left--) value = (value << 8n) | BigInt(reader.uint(1));
  return Number(value); // a number that is not exact is beyond every bound
}

function writeInteger(value: number, out: Writer): void {
  if (value < 0x40) out.uint(value, 1);
  else if (value < 0x4000) out.uint(value | 0x4000, 2);
  else out.uint(value + 0x80000000, 4); // content is far below 2^30 octets
}

function writeOpaque(octets: Octets, out: Writer): void {
  writeInteger(octets.length, out);
  out.put(octets);
}

function ascii(text: string): Octets {
  if (!/^[\x20-\x7e]*$/.test(text)) throw new Error("only ASCII is allowed here");
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

function latin1(octets: Octets): string {
  return String.fromCharCode(...octets);
}
