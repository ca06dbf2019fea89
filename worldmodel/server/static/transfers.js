// Files that go to the server and come from it: pictures and worlds up, worlds and videos down.

import { download } from "./recorder.js";

export class Transfers {
  /**
   * @param {URL} base of the server
   * @param {object} headers sent with every upload
   * @param {function(object): boolean} send to the server
   * @param {function(string, boolean)} busy told when a file of that kind ("world", "video") is being made
   */
  constructor(base, headers, send, busy) {
    this.base = base;
    this.headers = headers;
    this.send = send;
    this.busy = busy;
  }

  /** Resolves to the id that a `reset` takes; throws an Error for a person. @param {"images"|"worlds"} kind */
  async upload(kind, file) {
    let answer;
    try {
      const response = await fetch(new URL(`api/v1/${kind}`, this.base), { method: "POST", body: file, headers: this.headers });
      answer = await response.json();
    } catch {
      throw new Error("The file could not be sent.");
    }
    if (!answer.id) throw new Error(answer.error ?? "The file could not be used.");
    return answer.id;
  }

  /** Ask for a file of the world, or a video of the way so far; it is handed to the visitor when `saved` comes. */
  ask(kind) {
    if (this.send({ type: "save", kind })) this.busy(kind, true);
  }

  saved({ kind, url, name }) {
    this.busy(kind, false);
    download(new URL(url, this.base).href, name);
  }

  failed() {
    for (const kind of ["world", "video"]) this.busy(kind, false);
  }
}
