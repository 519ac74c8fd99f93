// Groups without MLS: messages of the right format without cryptography, as those of mimids.testing.

import { MLSMessage, requests } from "../dist/index.js";
import { PrivateMessage, ContentType, WireFormat } from "../dist/mls.js";
import { concat, fromUtf8, toUtf8 } from "../dist/octets.js";

const REST_OCTETS = 96;
const random = (octets) => crypto.getRandomValues(new Uint8Array(octets));

export class PretendGroup {
  constructor(hub, groupId = random(16), epoch = 0n, key = random(16)) {
    Object.assign(this, { hub, groupId, epoch, key });
  }

  creation() {
    return requests.creation(this.groupId, 1, this.key);
  }

  message(text) {
    return requests.message(this.#encoded(ContentType.APPLICATION, text), this.key);
  }

  /** Returns a commit, and the group in the next epoch. */
  commit(text = "") {
    const following = new PretendGroup(this.hub, this.groupId, this.epoch + 1n);
    return [requests.commit(this.#encoded(ContentType.COMMIT, text), this.key, following.key), following];
  }

  #encoded(contentType, text) {
    const head = Uint8Array.of(0, 1, 0, WireFormat.PRIVATE_MESSAGE);
    const body = {
      groupId: this.groupId,
      epoch: this.epoch,
      contentType,
      authenticatedData: new Uint8Array(),
      encryptedSenderData: random(28),
      ciphertext: concat(toUtf8(text), random(REST_OCTETS)),
    };
    const encoded = concat(head, PrivateMessage.encode(body));
    MLSMessage.decode(encoded);
    return encoded;
  }
}

/** Returns the text of a message of a PretendGroup. */
export function textOf({ message }) {
  return fromUtf8(message.message.ciphertext.slice(0, -REST_OCTETS));
}
