/* What this browser keeps, in IndexedDB: plugins' files as they were exported, sealed; and, sealed with the same
   passphrase, what was told here, what was forgotten, and the cloud's address and key. Nothing lies open. */

import { joined, text, utf8 } from "./bytes.js";
import { scrypt } from "./sealed.js";

const [STORE, NAME] = ["plugins", "sideplug"];

/** A transaction's request as a promise. */
const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(told(request.error));
  });

/** What stands in the way of keeping something, in words. */
function told(problem) {
  if (problem?.name === "QuotaExceededError") return new Error("this browser has no room left for it: free some of its storage, or use another browser");
  return new Error(`this browser refuses to keep anything (${problem?.name ?? "it has no storage"}): a private window may be why`);
}

async function store(mode) {
  if (!globalThis.indexedDB) throw told(null);
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "name" });
  const database = await done(opening);
  return database.transaction(STORE, mode).objectStore(STORE);
}

/** The names of all plugins that are kept. */
export const names = async () => done((await store("readonly")).getAllKeys());

/** A plugin: {name, file, more}; undefined where there is none of this name. */
export const kept = async (name) => done((await store("readonly")).get(name));

/** Keep a plugin. */
export const keep = async (plugin) => done((await store("readwrite")).put(plugin));

/** Forget a plugin, with all that was told to it here. */
export const drop = async (name) => done((await store("readwrite")).delete(name));

/** Seals what is kept beside a file: {key, salt}, made once of the passphrase. */
export class Sealer {
  static async of(passphrase, more) {
    const sealer = new Sealer();
    sealer.salt = more ? more.slice(0, 16) : crypto.getRandomValues(new Uint8Array(16));
    const bytes = await scrypt(utf8(passphrase), sealer.salt);
    sealer.key = await crypto.subtle.importKey("raw", bytes.subarray(0, 32), "AES-GCM", false, ["encrypt", "decrypt"]);
    return sealer;
  }

  /** salt, nonce, and the value's JSON under AES-256-GCM. */
  async seal(value) {
    const nonce = crypto.getRandomValues(new Uint8Array(12));
    const how = { name: "AES-GCM", iv: nonce, additionalData: this.salt };
    const body = new Uint8Array(await crypto.subtle.encrypt(how, this.key, utf8(JSON.stringify(value))));
    return joined([this.salt, nonce, body]);
  }

  async unseal(more) {
    const how = { name: "AES-GCM", iv: more.slice(16, 28), additionalData: this.salt };
    try {
      return JSON.parse(text(new Uint8Array(await crypto.subtle.decrypt(how, this.key, more.slice(28)))));
    } catch {
      throw new Error("what was told here was altered by somebody, or is damaged: bring the plugin again");
    }
  }
}
