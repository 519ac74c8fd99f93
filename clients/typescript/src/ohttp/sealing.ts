/**
 * Sealed requests, so that the device's provider does not learn whose KeyPackages are fetched. A request is sealed for
 * the gateway of the other provider, and relayed by the device's provider. Nothing here does any I/O.
 */

import { MIMI_DS } from "../connection.js";
import { KeyPackageBundleRequest, KeyPackageBundleResponse, type KeyPackageRequest, type KeyPackageResult } from "../messages.js";
import { fromUtf8, type Octets } from "../octets.js";
import { problemFromJson } from "../problem.js";
import { decodeResponse, encodeRequest } from "./bhttp.js";
import { readDate, writeDate } from "./date.js";
import { encapsulate } from "./encapsulation.js";
import type { KeyConfig } from "./keys.js";
import { padRequest } from "./padding.js";

/** The gateway says that our clock is wrong; `seconds` is the gateway's time, if known (RFC 9458 section 6.5.2). */
export class WrongDate extends Error {
  constructor(readonly seconds: number | null) {
    super("the gateway refuses our Date: the clock of this machine is wrong");
    this.name = "WrongDate";
  }
}

/** A `message/ohttp-req`, and the function that opens its answer: one result for each request, in order. */
export interface SealedRequest {
  message: Octets;
  open: (answer: Octets) => Promise<KeyPackageResult[]>;
}

/** Seals requests, which are answered in one transaction; `dateSeconds` is a blurred time. */
export async function seal(
  config: KeyConfig,
  provider: string,
  requests: readonly KeyPackageRequest[],
  dateSeconds: number,
  ephemeral?: Octets,
): Promise<SealedRequest> {
  const request = encodeRequest({
    method: "POST",
    scheme: "https",
    authority: provider,
    path: "/key-packages?bundle",
    fields: [
      ["content-type", MIMI_DS],
      ["date", writeDate(dateSeconds)],
    ],
    content: KeyPackageBundleRequest.encode({ requests: [...requests] }),
  });
  const sealed = await encapsulate(config, padRequest(request), ephemeral);
  const open = async (answer: Octets): Promise<KeyPackageResult[]> => {
    const response = decodeResponse(await sealed.open(answer));
    if (response.status === 200) return KeyPackageBundleResponse.decode(response.content).results;
    const problem = problemFromJson(response.status, fromUtf8(response.content));
    if (problem.code !== "date") throw problem;
    throw new WrongDate(readDate(response.fields.find(([name]) => name === "date")?.[1]));
  };
  return { message: sealed.message, open };
}
