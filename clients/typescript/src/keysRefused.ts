/** The gateway's key configurations must not be used. */
export class KeysRefused extends Error {
  constructor(message: string) {
    super(message);
    this.name = new.target.name;
  }
}

/** The provider shows different key sets for the same time, perhaps to tell clients apart. */
export class KeysDiffer extends KeysRefused {}
