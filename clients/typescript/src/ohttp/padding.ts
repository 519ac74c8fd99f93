/** Padding to size classes, which hides the exact length of a request from the relay. */

import type { Octets } from "../octets.js";

const SMALLEST_REQUEST = 1024;
const STEP = 65536; // larger classes are multiples of this

/** Pads an encoded Binary HTTP request with zeros (RFC 9292 section 3.8) to its size class. */
export function padRequest(message: Octets): Octets {
  const padded = new Uint8Array(sizeClass(message.length));
  padded.set(message);
  return padded;
}

function sizeClass(size: number): number {
  if (size > STEP) return Math.ceil(size / STEP) * STEP;
  return Math.max(SMALLEST_REQUEST, 2 ** Math.ceil(Math.log2(Math.max(size, 1))));
}
