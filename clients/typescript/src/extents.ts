/**
 * Finds the end of a message that carries a proposal of unknown type, which RFC 9420 does not delimit.
 *
 * MLS libraries disagree on the body of such a proposal. But the message ends with a signature and, if a member sent
 * it, with a membership tag. Their sizes are known for each cipher suite. Only a few things can follow a message in the
 * structures of this protocol. So this module looks for places where a signature ends and one of these things follows.
 * `mimids/mls/extents.py` does the same, and a test compares the two.
 */

import { concat, type Octets } from "./octets.js";

const HEADER_OCTETS = 4; // of an MLSMessage: version, and wire format
const KEY_OCTETS = 16; // of the partition key after the message of a SendRequest
const LOOKED_AT = 1024; // possible beginnings of messages that are examined in a message
const LONGEST_ENDING = 2 + 139 + 2 + 64; // octets of a signature and a membership tag, with their lengths
const OPTIONAL_MASKS = [1 + 2 + 64, 1 + 1 + 48, 1 + 1 + 32]; // octets of the masked key after an external proposal

/** Octets of signatures: the fixed sizes (EdDSA), and the largest DER form (ECDSA). */
interface Sizes {
  fixed: readonly number[];
  largest: number;
}

// By the size of the suite's membership tag, with the octets of the tag's length.
const BY_TAG: readonly { size: number; header: readonly number[]; sizes: Sizes }[] = [
  { size: 32, header: [0x20], sizes: { fixed: [64], largest: 72 } },
  { size: 48, header: [0x30], sizes: { fixed: [], largest: 104 } },
  { size: 64, header: [0x40, 0x40], sizes: { fixed: [114], largest: 139 } },
];
const UNTAGGED: Sizes = { fixed: [64, 114], largest: 139 };

/**
 * Returns the end of a message whose proposal has its body at `body`; null if the end is not certain.
 *
 * `end` is the end of the enclosing structure. `tagged`: the message has a membership tag. `declared` is the end if the
 * body is an opaque<V>; null if the message does not parse like this. The end is not certain if the message could end
 * elsewhere in another structure: its readers would read something else than the hub sequenced.
 */
export function endOfMessage(
  data: Octets,
  body: number,
  end: number,
  tagged: boolean,
  declared: number | null,
): number | null {
  const found = firstEnd(data, body, end, tagged, declared, body);
  if (found === null) return declared;
  const within = declared === null || declared > found ? null : declared - body;
  const alone = data.subarray(body, found);
  for (const follows of [[], [0, 1, 0, 1], [0, 1, 0, 2]]) {
    const octets = concat(alone, Uint8Array.from(follows));
    const since = Math.max(0, alone.length - HEADER_OCTETS + 1); // messages with an earlier end were looked at above
    if (firstEnd(octets, 0, octets.length, tagged, within, since) !== alone.length) return null;
  }
  return found;
}

/** Returns the offset, from `start` on, of the signature that ends at `end` (plus a tag if `tagged`), or null. */
export function signatureBefore(data: Octets, start: number, end: number, tagged: boolean): number | null {
  return new Signatures(data, start).before(end, tagged);
}

/** Returns the first place where the message may end: `declared`, or a place with a signature before it. */
function firstEnd(
  data: Octets,
  body: number,
  end: number,
  tagged: boolean,
  declared: number | null,
  since: number,
): number | null {
  const known = declared !== null && mayEnd(data, declared, end) ? declared : null;
  const signatures = new Signatures(data, Math.max(body, since - KEY_OCTETS - LONGEST_ENDING));
  for (const place of possibleEnds(data, body, end, since)) {
    if (known !== null && known <= place) break;
    if (signatures.before(place, tagged) !== null) return place;
  }
  return known;
}

/** Tells whether an MLSMessage may begin here. */
function begins(data: Octets, place: number, end: number): boolean {
  const format = data[place + 3];
  return (
    place >= 0 &&
    place + HEADER_OCTETS <= end &&
    data[place] === 0 &&
    data[place + 1] === 1 &&
    data[place + 2] === 0 &&
    format! >= 1 &&
    format! <= 5
  );
}

/** Tells whether a message may end here, judging by the octets that follow: `possibleEnds` for one place. */
function mayEnd(data: Octets, place: number, end: number): boolean {
  const left = end - place;
  if (left === 0 || left === KEY_OCTETS || begins(data, place, end) || begins(data, place + KEY_OCTETS, end)) return true;
  return data[place] === 0 ? left === 1 : data[place] === 1 && OPTIONAL_MASKS.includes(left);
}

/** Yields the places after which another message, a key, or nothing follows, so that a message may end there. */
function* possibleEnds(data: Octets, body: number, end: number, since: number): Generator<number> {
  let count = 0;
  for (let place = since; place < end; place++) {
    if (!begins(data, place, end)) continue;
    if (count++ === LOOKED_AT) return;
    yield place - KEY_OCTETS;
    yield place;
  }
  for (const size of OPTIONAL_MASKS) if (end - size >= body && data[end - size] === 1) yield end - size;
  yield end - KEY_OCTETS;
  if (end > body && data[end - 1] === 0) yield end - 1;
  yield end;
}

/** The places in `data` from a start on where a signature may end, found in one pass over the octets. */
class Signatures {
  private readonly ends = new Map<number, number[]>(); // by the end of a signature: its possible beginnings, ascending

  constructor(
    private readonly data: Octets,
    private lookedAt: number,
  ) {}

  before(end: number, tagged: boolean): number | null {
    if (!tagged) return this.endingAt(end, UNTAGGED);
    for (const { size, header, sizes } of BY_TAG) {
      const place = end - size - header.length;
      if (place < 0 || header.some((octet, at) => this.data[place + at] !== octet)) continue;
      const found = this.endingAt(place, sizes);
      if (found !== null) return found;
    }
    return null;
  }

  /** Returns the offset of the `opaque signature<V>` that ends at `end`; prefers one of a fixed size. */
  private endingAt(end: number, { fixed, largest }: Sizes): number | null {
    this.lookUpTo(end);
    const places = this.ends.get(end) ?? [];
    const octets = (place: number): number => end - contentOf(this.data, place);
    const eddsa = places.find((place) => fixed.includes(octets(place)));
    if (eddsa !== undefined) return eddsa;
    const ecdsa = (place: number): boolean => isEcdsa(this.data, contentOf(this.data, place), end);
    return places.find((place) => octets(place) <= largest && ecdsa(place)) ?? null;
  }

  private lookUpTo(end: number): void {
    for (; this.lookedAt < end && this.lookedAt < this.data.length; this.lookedAt++) {
      const place = this.lookedAt;
      const size = signatureOctets(this.data, place);
      if (size === null) continue;
      const stop = contentOf(this.data, place) + size;
      const places = this.ends.get(stop);
      if (places === undefined) this.ends.set(stop, [place]);
      else places.push(place);
    }
  }
}

/** Returns the length of the `opaque<V>` at a place if it may be a signature, else null. */
function signatureOctets(data: Octets, place: number): number | null {
  const [first, second, third] = [data[place]!, data[place + 1], data[place + 2]];
  if (first === 0x40 && second !== undefined) {
    const isEdDsa = second === 0x40 || second === 0x72;
    return isEdDsa || (second >= 0x40 && second <= 0x8b && third === 0x30) ? second : null;
  }
  return first >= 0x08 && first <= 0x3f && second === 0x30 ? first : null;
}

function contentOf(data: Octets, place: number): number {
  return place + (data[place]! < 0x40 ? 1 : 2);
}

/** Tells whether these octets are an ECDSA-Sig-Value in DER: a SEQUENCE of two INTEGERs (RFC 3279 section 2.2.3). */
function isEcdsa(data: Octets, start: number, end: number): boolean {
  const sequence = derContent(data, start, 0x30);
  if (sequence === null || derEnd(data, start) !== end) return false;
  const second = derEnd(data, sequence);
  if (second === null || data[sequence] !== 0x02 || data[second] !== 0x02) return false;
  return derEnd(data, second) === end;
}

/** Returns where the content of a DER value begins; null for another tag or a long length. */
function derContent(data: Octets, start: number, tag: number): number | null {
  const length = data[start + 1];
  if (length === undefined || data[start] !== tag || (length > 0x80 && length !== 0x81)) return null;
  return start + (length === 0x81 ? 3 : 2);
}

function derEnd(data: Octets, start: number): number | null {
  const length = data[start + 1];
  if (length !== 0x81) return length === undefined ? null : start + 2 + length;
  const long = data[start + 2];
  return long === undefined ? null : start + 3 + long;
}
