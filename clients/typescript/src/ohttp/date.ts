/** The `Date` of an encapsulated request (RFC 9458 section 6.5.1). */

const MINUTE_SECONDS = 60;

/** Dates that a client chooses from at random. */
export const DATE_SHIFTS = 5;

/**
 * Returns the time to write into a request instead of `seconds`: a whole minute, at most 150 s from `seconds`.
 *
 * The exact time would let a gateway recognise a client by the error of its clock. So the time is rounded to the minute,
 * and `shift`, a random number below DATE_SHIFTS, moves it by up to two minutes in either direction.
 */
export function blurred(seconds: number, shift: number): number {
  const minutes = Math.floor((seconds + MINUTE_SECONDS / 2) / MINUTE_SECONDS);
  return (minutes + shift - Math.floor(DATE_SHIFTS / 2)) * MINUTE_SECONDS;
}

/** Returns the IMF-fixdate (RFC 9110 section 5.6.7) of a time in seconds since 1970. */
export function writeDate(seconds: number): string {
  return new Date(seconds * 1000).toUTCString();
}

/** Returns the seconds since 1970 of an IMF-fixdate, which gateways send; null for anything else. */
export function readDate(field: string | undefined): number | null {
  const milliseconds = Date.parse(field ?? "");
  return Number.isNaN(milliseconds) || new Date(milliseconds).toUTCString() !== field ? null : milliseconds / 1000;
}
