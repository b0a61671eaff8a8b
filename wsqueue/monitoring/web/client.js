// The wsqueue client for browsers, and for Node with a WebSocket class: docs/javascript.md. No dependencies.

export const SUBPROTOCOL = "wsqueue.v2";

// Limits of unconfirmed messages and their bytes, at which publishing fails with WindowFull; a call may exceed them.
export const WINDOW_MESSAGES = 10000;
export const WINDOW_BYTES = 4 * 1024 * 1024;
// Maximum size of a batch, and of unsent data in the socket.
export const BATCH_BYTES = 64 * 1024;
export const SOCKET_BYTES = 1024 * 1024;
// Maximum number of topics, and of publishers on a topic whose last batch is remembered.
export const MAX_TOPICS = 1000;
export const MAX_PUBLISHERS = 1000;
// Maximum length of messages that wait until the peer has proved that it knows the key.
export const MAX_EARLY_BYTES = 1024 * 1024;
// Headers of a message, and the characters of their names and values.
export const MAX_HEADERS = 16;
export const MAX_HEADER_NAME_CHARACTERS = 64;
export const MAX_HEADER_VALUE_CHARACTERS = 1024;
// Messages that a group lends to one member at a time, its shortest and longest lease, and the deliveries after
// which a message becomes a dead letter at the latest.
export const MAX_PREFETCH = 10000;
export const MIN_LEASE_SECONDS = 0.1;
export const MAX_LEASE_SECONDS = 86400;
export const MAX_DELIVERIES = 1000;
// Longest time until a message is lent again, characters of the reason why one is rejected, and ranges of
// messages in a packet that tells their outcome.
export const MAX_DELAY_SECONDS = 86400;
export const MAX_REASON_CHARACTERS = 200;
export const MAX_SETTLED_RANGES = 1024;
// Renewals in the time of a lease, while a message waits for the callback: one that is late does no harm.
export const RENEWALS = 3;
// Messages of a named reader, and their characters or bytes, above which no more come while they wait.
export const MAX_WAITING_MESSAGES = 1000;
export const MAX_WAITING_CHARACTERS = 16 * 1024 * 1024;
export const HELLO_SECONDS = 10;
// Time before the end of a token from which on a new connection asks the application for the next one.
export const RENEW_SECONDS = 10;
// v2: silence after which the node is asked whether it is there, and the time that it has to answer.
export const SILENCE_SECONDS = 20;
export const ANSWER_SECONDS = 10;
// The silence until a node whose place another one can take is asked, and the time for its answer.
export const CLOSE_WATCH_SECONDS = 2;
// Time without a node after which unconfirmed messages, and outcomes of messages, fail.
export const OPEN_SECONDS = 10;
export const RECONNECT_MIN_SECONDS = 0.1;
export const RECONNECT_MAX_SECONDS = 5;
// Time without a usable consumer until another one is looked for, longer than most reconnects; time that the
// home has been usable again when it serves again, so that one that comes and goes does not; and time that
// another consumer has to say which log it shares, which it does first of all.
export const AWAY_SECONDS = 3;
export const BACK_SECONDS = 10;
export const LOG_SECONDS = 1;

// Events of a window after which connections may have gone unnoticed: another network, the end of a sleep.
const WAKING_EVENTS = ["online", "pageshow", "focus"];
const MAX_ONCE = 2 ** 31 - 2;
const NONCE_BYTES = 32;
const MAX_CLOSE_REASON_BYTES = 123;
const WRONG_TYPE = "packets of v2 are binary messages, classic ones are texts";
// MessagePack: depth of lists and maps in each other, 64 of them in an unknown field of messages; and the
// numbers of 1, 2, 4 and 8 bytes.
const MAX_DEPTH = 66;
const UINTS = ["Uint8", "Uint16", "Uint32", "BigUint64"];
const INTS = ["Int8", "Int16", "Int32", "BigInt64"];
const FLOATS = ["", "", "Float32", "Float64"];
// Close codes after which a retry would end the same way, and codes that refuse published data.
const FOR_GOOD = new Set([
  1003, 1007, 4400, 4401, 4402, 4403, 4404, 4405, 4409, 4410, 4412, 4413, 4414, 4416, 4417,
]);
const TOKEN_ENDED = 4417;
const GROUP_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const DATA_REFUSED = new Set([1002, 1003, 1007, 1009, 4400, 4409, 4410]);

/** A problem in a sentence; `code` is a close code or the code of a refusal. */
export class WsqueueError extends Error {
  constructor(message, code = 0) {
    super(message);
    this.name = new.target.name;
    this.code = code;
  }
}
/** No node answers, or a node refuses permanently. */
export class ConnectError extends WsqueueError {}
/** A node answers, and has another key or takes the token no more. */
export class AuthenticationError extends ConnectError {}
/** A node answers, and the key or the token does not allow it. */
export class NotAllowedError extends ConnectError {}
/** A batch was refused permanently: it is not in the log. */
export class PublishError extends WsqueueError {}
/** Too many messages are unconfirmed: await earlier calls of `publish` first. */
export class WindowFull extends WsqueueError {}

const utf8 = new TextEncoder();
// A decoder drops a byte order mark unless it is told to ignore its meaning.
const fromUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const base64 = (bytes) => btoa(String.fromCharCode(...bytes));
const random = (count) => crypto.getRandomValues(new Uint8Array(count));
const isSecret = (value) => value instanceof Uint8Array && value.length === NONCE_BYTES;
const after = (seconds, act) => setTimeout(act, seconds * 1000);
const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
const fault = (code, reason = "the hello is out of order") => Object.assign(new Error(reason), { code });
const within = (value, low, high) => value >= low && value <= high;

/** Give an object a promise under a name, with its `resolve` and `reject`; nobody has to take its error. */
function promise(object, name) {
  object[name] = new Promise((resolve, reject) => Object.assign(object, { resolve, reject }));
  object[name].catch(() => {});
  return object;
}

function text(value, name) {
  if (typeof value !== "string") throw new TypeError(`${name} is not a string`);
  if (/\p{Surrogate}/u.test(value))
    throw new WsqueueError(`${name} has a lone surrogate, which UTF-8 lacks`);
  return value;
}

/** Return byte arrays one behind the other, as one. */
function join(parts) {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Return a value as MessagePack: null, booleans, numbers, strings, Uint8Arrays, arrays and objects. */
export function pack(value) {
  let bytes = new Uint8Array(256);
  let view = new DataView(bytes.buffer);
  let end = 0;

  function room(count) {
    end += count;
    if (end > bytes.length) {
      bytes = join([bytes, new Uint8Array(2 * end - bytes.length)]);
      view = new DataView(bytes.buffer);
    }
    return end - count;
  }

  function write(kinds, index, number) {
    const at = room(1 << index);
    view[`set${kinds[index]}`](at, index === 3 && kinds !== FLOATS ? BigInt(number) : number);
  }

  // A size or a number: in one byte with its kind if it is below the limit, else behind a code.
  function head(size, kind, limit, code, least = 0) {
    if (size < limit) return write(UINTS, 0, kind | size);
    const index = size < 2 ** 8 ? least : size < 2 ** 16 ? 1 : size < 2 ** 32 ? 2 : 3;
    write(UINTS, 0, code + index);
    return write(UINTS, index, size);
  }

  function block(data, kind, limit, code) {
    head(data.length, kind, limit, code);
    const at = room(data.length);
    bytes.set(data, at);
  }

  function put(one) {
    if (one === null) write(UINTS, 0, 0xc0);
    else if (typeof one === "boolean") write(UINTS, 0, one ? 0xc3 : 0xc2);
    else if (typeof one === "string") block(utf8.encode(one), 0xa0, 32, 0xd9);
    else if (one instanceof Uint8Array) block(one, 0, 0, 0xc4);
    else if (Number.isSafeInteger(one) && one >= 0) head(one, 0, 0x80, 0xcc);
    else if (typeof one === "number") {
      const whole = Number.isSafeInteger(one);
      write(UINTS, 0, whole ? 0xd3 : 0xcb);
      write(whole ? INTS : FLOATS, 3, one);
    } else {
      const list = Array.isArray(one);
      const items = list ? one : Object.entries(one);
      head(items.length, list ? 0x90 : 0x80, 16, list ? 0xdb : 0xdd, 1);
      for (const item of list ? items : items.flat()) put(item);
    }
  }

  put(value);
  return bytes.slice(0, end);
}

/**
 * Return the value of MessagePack that fills a Uint8Array; it throws if that is anything else.
 *
 * Values that JavaScript or UTF-8 lacks are undefined, because a newer node may have them in unknown fields:
 * integers beyond 2 ** 53, bad UTF-8, extensions, and entries of inner maps with other keys than strings.
 */
export function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;

  function read(kinds, index) {
    const number = Number(view[`get${kinds[index]}`](at));
    at += 1 << index;
    return number;
  }

  function whole(kinds, index) {
    const number = read(kinds, index);
    return Number.isSafeInteger(number) ? number : undefined;
  }

  // Each item takes a byte or more, so a size that cannot be true ends here.
  function sized(size, least = 1) {
    if (size * least > bytes.length - at) throw new RangeError("the end is missing");
    return size;
  }

  function block(size) {
    at += sized(size);
    return bytes.subarray(at - size, at);
  }

  function string(size) {
    const data = block(size);
    try {
      return fromUtf8.decode(data);
    } catch {
      return undefined;
    }
  }

  function extension(size) {
    block(size + 1);
    return undefined;
  }

  const list = (size, depth) => Array.from({ length: sized(size) }, () => take(depth));

  function map(size, depth) {
    const entries = Array.from({ length: sized(size, 2) }, () => [take(depth), take(depth)]);
    const named = entries.filter(([name]) => typeof name === "string");
    if (depth === 1 && named.length < size) throw new TypeError("a key is not a string");
    return Object.fromEntries(named);
  }

  function take(depth) {
    const code = bytes[at];
    at += 1;
    if (code < 0x80) return code;
    if (code >= 0xe0) return code - 0x100;
    if (code >= 0xa0 && code < 0xc0) return string(code & 31);
    const index = code & 3;
    if (code === 0xc0) return null;
    if (code === 0xc2 || code === 0xc3) return code === 0xc3;
    if (code >= 0xc4 && code <= 0xc6) return block(read(UINTS, index));
    if (code === 0xca || code === 0xcb) return read(FLOATS, index);
    if (code >= 0xcc && code <= 0xcf) return whole(UINTS, index);
    if (code >= 0xd0 && code <= 0xd3) return whole(INTS, index);
    if (code >= 0xd9 && code <= 0xdb) return string(read(UINTS, index - 1));
    if (code >= 0xc7 && code <= 0xc9) return extension(read(UINTS, code - 0xc7));
    if (code >= 0xd4 && code <= 0xd8) return extension(1 << (code - 0xd4));
    if (depth === MAX_DEPTH) throw new RangeError("it is too deep");
    if (code < 0x90) return map(code & 15, depth + 1);
    if (code < 0xa0) return list(code & 15, depth + 1);
    if (code === 0xdc || code === 0xdd) return list(read(UINTS, index + 1), depth + 1);
    if (code === 0xde || code === 0xdf) return map(read(UINTS, index - 1), depth + 1);
    throw new TypeError("it has a type that packets lack");
  }

  const value = take(0);
  if (at !== bytes.length) throw new RangeError("there is more behind it");
  return value;
}

/** Return the hash of a topic, 0 to 2 ** 31; dead letters have that of the topic that they come from. */
export function topicHash(topic) {
  const origin = topic.replace(/(![^!]*!dead)+$/u, "");
  let hash = 0;
  for (let index = 0; index < origin.length; index += 1) hash = (hash * 31 + origin.charCodeAt(index)) | 0;
  return Math.abs(hash);
}

/** Return the index of the consumer that a topic belongs to. */
export function consumerOf(topic, consumers) {
  return topicHash(topic) % consumers;
}

/** Return the URL of an endpoint; `address` is host:port, perhaps after ws:// or wss:// and before a path. */
function locate(address, endpoint, suffix = "") {
  let url;
  try {
    const hasScheme = /^wss?:\/\//i.test(address);
    if (hasScheme || !address.includes("://")) url = new URL(hasScheme ? address : `ws://${address}`);
  } catch {
    // Refused below.
  }
  expect(url, "an address", address, "host:port, ws://host:port or wss://host:port");
  const path = url.pathname.replace(/\/$/, "");
  const whole = new URL(`${url.origin}${path.endsWith(endpoint) ? path : path + endpoint}${suffix}`);
  return { address, url: whole.href, target: whole.pathname + whole.search, tls: whole.protocol === "wss:" };
}

/** Holds a key, perhaps with a name, or the secret and the claims of a token; it never shows the secret. */
class Key {
  #bytes;
  #hmac;

  constructor(secret, name = "", token = new Uint8Array(), expires = Infinity) {
    this.#bytes = utf8.encode(text(secret, "the pre-shared key"));
    if (!this.#bytes.length) throw new WsqueueError("the pre-shared key is empty");
    Object.assign(this, { name: text(name, "the name of the key"), token, expires });
  }

  // Each use of the key has one that is derived from it, here by HKDF without salt.
  async #derived() {
    const hkdf = { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info: utf8.encode("wsqueue proof") };
    const hmac = { name: "HMAC", hash: "SHA-256", length: 256 };
    const key = await crypto.subtle.importKey("raw", this.#bytes, "HKDF", false, ["deriveKey"]);
    return crypto.subtle.deriveKey(hkdf, key, hmac, false, ["sign", "verify"]);
  }

  #imported() {
    this.#hmac ??= this.#derived();
    return this.#hmac;
  }

  async prove(claim) {
    return new Uint8Array(await crypto.subtle.sign("HMAC", await this.#imported(), claim));
  }

  async proves(claim, proof) {
    return crypto.subtle.verify("HMAC", await this.#imported(), proof, claim);
  }

  async answer(once, order) {
    const challenge = utf8.encode(once.toString(16));
    const parts = order === "reversed" ? [this.#bytes, challenge] : [challenge, this.#bytes];
    return base64(await sha256(join(parts)));
  }
}

/** Return the key that a token is: its claims, a dot and its secret. */
function keyOf(token) {
  try {
    const [, encoded, secret] = /^([\w-]+)\.([\w-]+)$/.exec(token.trim());
    const characters = atob(encoded.replaceAll("-", "+").replaceAll("_", "/"));
    const claims = Uint8Array.from(characters, (character) => character.charCodeAt(0));
    const { expires } = JSON.parse(fromUtf8.decode(claims));
    if (Number.isFinite(expires)) return new Key(secret, "", claims, expires);
  } catch {
    // Refused below.
  }
  // Without the text, which has the secret.
  throw new WsqueueError("the text is no token: expected the output of `wsqueue token`");
}

/** The key or the token of a client; the application may bring the next token again and again. */
class Credential {
  #key = null;
  #renew = null;
  #renewing = null;

  constructor({ psk, name, token }) {
    if (token !== undefined && (psk !== undefined || name))
      throw new WsqueueError("a token stands for a key and its name: pass either token, or psk and name");
    if (typeof token === "function") this.#renew = token;
    else this.#key = token === undefined ? new Key(psk, name) : keyOf(token);
  }

  async current() {
    if (!this.#renew || Date.now() < (this.#key?.expires - RENEW_SECONDS) * 1000) return this.#key;
    // All connections wait for one answer.
    this.#renewing ??= this.#ask(this.#renew).finally(() => {
      this.#renewing = null;
    });
    return this.#renewing;
  }

  /** Note that a node takes a token no more; return true if the application brings the next one. */
  ended(key) {
    if (this.#renew && key === this.#key) this.#key = null;
    return this.#renew !== null;
  }

  async #ask(renew) {
    try {
      this.#key = keyOf(await renew());
    } catch (error) {
      throw new WsqueueError(`the application has brought no token: ${error?.message ?? error}`);
    }
    return this.#key;
  }
}

/** Return the claim that a proof of v2 signs: each part after its length. */
function claimOf(role, acceptorNonce, initiatorNonce, target, binding, { name, token }) {
  const [label, path, offered] = [`wsqueue.v2 ${role}`, target, SUBPROTOCOL].map((part) => utf8.encode(part));
  const parts = [label, acceptorNonce, initiatorNonce, path, offered, binding];
  if (name || token.length) parts.push(utf8.encode(name), token);
  return join(
    parts.flatMap((part) => {
      const length = new Uint8Array(4);
      new DataView(length.buffer).setUint32(0, part.length);
      return [length, part];
    }),
  );
}

/** The hello of v2: prove, and verify. `receive` returns true when both ends have proved themselves. */
class HelloV2 {
  constructor(key, place, binding, send) {
    Object.assign(this, { key, place, binding, send, nonce: random(NONCE_BYTES), challenge: null });
  }

  begin() {}

  async receive(packet) {
    if (packet.t === "challenge") {
      if (this.challenge !== null) throw fault(4404);
      if (!isSecret(packet.nonce)) throw fault(4400, "not a valid packet");
      this.challenge = packet.nonce;
      const proof = await this.key.prove(this.#claim("initiator"));
      const { name: key, token } = this.key;
      const more = Object.entries({ binding: this.binding, key, token }).filter(([, value]) => value.length);
      const given = Object.fromEntries(more);
      this.send({ t: "proof", proof, nonce: this.nonce, path: this.place.target, ...given });
      return false;
    }
    if (packet.t !== "proof") throw fault(4402);
    if (this.challenge === null) throw fault(4409);
    const { proof, nonce, path, binding, key, token } = packet;
    if (!isSecret(proof) || nonce || path || binding || key || token) throw fault(4400, "not a valid packet");
    if (!(await this.key.proves(this.#claim("acceptor"), proof))) {
      throw fault(4401, "wrong answer: the pre-shared keys differ");
    }
    return true;
  }

  #claim(role) {
    return claimOf(role, this.challenge, this.nonce, this.place.target, this.binding, this.key);
  }
}

/** The hello of the original nodes. */
class HelloClassic {
  constructor(key, order, send) {
    const once = 1 + (new DataView(random(4).buffer).getUint32(0) % MAX_ONCE);
    Object.assign(this, { key, order, send, once, challenged: false, proved: false });
  }

  begin() {
    this.send({ t: "h", o: this.once });
  }

  async receive(packet) {
    if (packet.t !== "h") throw fault(4402);
    if (Number.isInteger(packet.o) && packet.o >= 1 && packet.o <= MAX_ONCE) {
      if (this.challenged) throw fault(4404);
      if (packet.o === this.once) throw fault(4405, "our own challenge was sent back");
      this.challenged = true;
      this.send({ t: "h", a: await this.key.answer(packet.o, this.order) });
    } else if (typeof packet.a === "string") {
      if (this.proved) throw fault(4403);
      const rights = [
        await this.key.answer(this.once, "document"),
        await this.key.answer(this.once, "reversed"),
      ];
      if (!rights.some((right) => same(right, packet.a))) {
        throw fault(4401, "wrong answer: the pre-shared keys differ");
      }
      this.proved = true;
    } else throw fault(4400, "not a valid packet");
    return this.challenged && this.proved;
  }
}

/** Return true if two texts are equal; the time it takes does not depend on where they differ. */
function same(first, second) {
  let difference = first.length ^ second.length;
  for (let index = 0; index < first.length; index += 1)
    difference |= first.charCodeAt(index) ^ second.charCodeAt(index);
  return difference === 0;
}

/** A WebSocket with its hello. `ended` resolves to { code, reason, byPeer, opened } when it is closed. */
class Connection {
  constructor(link, place, key, binding) {
    Object.assign(this, {
      link,
      place,
      up: false,
      opened: false,
      over: false,
      heardAt: 0,
      askedAt: 0,
      silenceSeconds: SILENCE_SECONDS,
      answerSeconds: ANSWER_SECONDS,
      early: [],
      earlyBytes: 0,
    });
    promise(this, "ended");
    const { client } = link;
    const send = (packet) => this.send(client.encode(packet));
    this.hello = client.v2
      ? new HelloV2(key, place, binding, send)
      : new HelloClassic(key, client.helloOrder, send);
    try {
      this.socket = client.v2
        ? new client.WebSocket(place.url, [SUBPROTOCOL])
        : new client.WebSocket(place.url);
    } catch (error) {
      // A page that was loaded over https may not open ws:// to other hosts.
      this.#end({ code: 0, reason: `the browser refuses: ${error.message}`, byPeer: false, forGood: true });
      return;
    }
    this.socket.binaryType = "arraybuffer";
    this.timer = setTimeout(() => this.fail(4408, "the hello took too long"), HELLO_SECONDS * 1000);
    this.socket.onopen = () => {
      this.opened = true;
      this.hello.begin();
    };
    this.socket.onmessage = (event) => this.#message(event.data);
    // `onclose` tells the same. The class of the package `ws` ends a program that does not listen for errors.
    this.socket.onerror = () => {};
    this.socket.onclose = (event) => {
      const unopened =
        "no connection" + (place.tls ? " (is it up, and does this browser trust its certificate?)" : "");
      const reason = event.reason || (this.opened ? "connection lost" : unopened);
      this.#end({ code: event.code, reason, byPeer: true });
    };
  }

  send(payload) {
    if (!this.over && this.socket.readyState === 1) this.socket.send(payload);
  }

  fail(code, reason) {
    if (this.over) return;
    this.#end({ code, reason, byPeer: false });
    try {
      this.socket.close(code, utf8.encode(reason).length > MAX_CLOSE_REASON_BYTES ? "" : reason);
    } catch {
      this.socket.close();
    }
  }

  #end(closed) {
    if (this.over) return;
    this.over = true;
    this.up = false;
    this.early = [];
    clearTimeout(this.timer);
    this.resolve({ opened: this.opened, ...closed });
  }

  /** Ask the node whether it is there, because a browser cannot ping; without an answer, give it up. */
  check() {
    // A question that waits for its answer keeps its time, however often the page gets the focus.
    if (this.heardAt >= this.askedAt) this.#ask();
  }

  #ask(again = false) {
    if (!this.up || !this.link.client.v2) return;
    const asked = (this.askedAt = Date.now());
    const unsent = this.socket.bufferedAmount;
    clearTimeout(this.timer);
    this.send(pack({ t: "ask_alive" }));
    this.timer = setTimeout(() => {
      // A page that slept has not had the time to hear the answer, and timers of hidden pages are always late.
      const late = Date.now() - asked > 2 * this.answerSeconds * 1000 && !again;
      if (this.heardAt >= asked) this.#watch();
      else if (late || this.socket.bufferedAmount < unsent) this.#ask(late);
      else this.fail(4411, "no answer to a question");
    }, this.answerSeconds * 1000);
  }

  /** Notice within seconds that the node is silent, because another one can take its place. */
  watchClosely() {
    if (this.over || !this.link.client.v2 || this.silenceSeconds === CLOSE_WATCH_SECONDS) return;
    this.silenceSeconds = this.answerSeconds = CLOSE_WATCH_SECONDS;
    this.#watch();
  }

  #watch() {
    const seconds = this.silenceSeconds - (Date.now() - this.heardAt) / 1000;
    clearTimeout(this.timer);
    this.timer = setTimeout(
      () => (Date.now() - this.heardAt < this.silenceSeconds * 1000 ? this.#watch() : this.#ask()),
      Math.max(0, seconds) * 1000,
    );
  }

  #message(data) {
    if (this.over) return;
    const first = !this.heardAt;
    this.heardAt = Date.now();
    if ((typeof data === "string") === this.link.client.v2) {
      // The original nodes select any subprotocol, and then speak classic.
      if (first && this.link.client.v2) this.fail(4412, 'it speaks classic: pass protocol: "classic"');
      else this.fail(4400, WRONG_TYPE);
    } else if (this.up) this.#packet(data);
    else {
      // Messages that arrive while the hello is verified wait, in their order.
      this.earlyBytes += data.length ?? data.byteLength;
      if (this.earlyBytes > MAX_EARLY_BYTES) this.fail(4402, "too much before the hello was done");
      this.early.push(data);
      if (!this.working) this.#work();
    }
  }

  async #work() {
    this.working = true;
    try {
      while (this.early.length) {
        const data = this.early.shift();
        if (this.up) this.#packet(data);
        else if ((await this.hello.receive(parsed(data))) && !this.over) {
          this.up = true;
          clearTimeout(this.timer);
          if (this.link.client.v2) this.#watch();
          this.link.established(this);
        }
      }
    } catch (error) {
      this.#fault(error);
    }
    this.working = false;
  }

  #packet(data) {
    try {
      const packet = checked(parsed(data));
      if (packet.t !== "alive") this.link.received(packet);
    } catch (error) {
      this.#fault(error);
    }
  }

  #fault(error) {
    // Exceptions of the browser have codes too, which are not close codes.
    this.fail(error.code >= 4000 ? error.code : 4400, error.message);
  }
}

function parsed(data) {
  let packet = null;
  try {
    packet = typeof data === "string" ? JSON.parse(data) : unpack(new Uint8Array(data));
  } catch {
    // Refused below.
  }
  if (typeof packet?.t !== "string") throw fault(4400, "not a valid packet");
  return packet;
}

const isWhole = (value) => Number.isSafeInteger(value) && value >= 0;
const isString = (value) => typeof value === "string";
const isCode = (value) => isString(value ?? "");
// The fields of packets that clients get, besides those of batches (`areBatches`, `messagesOf`).
const FIELDS = {
  ack: {
    numbers: (all) =>
      Array.isArray(all) && all.every((range) => range?.length === 2 && [...range].every(isWhole)),
  },
  refused: { number: isWhole, code: isString, reason: isString },
  draining: { retry_seconds: Number.isFinite },
  subscribed: { topic: isString, log: isString, offset: isWhole },
  unsubscribed: { topic: isString, code: isCode },
  gap: { topic: isString, offset: isWhole, missed: (missed) => missed === null || isWhole(missed) },
  deliver: { topic: isString, offset: isWhole, publisher: isString },
  followed: { prefix: isString, code: isCode },
  committed: { topic: isString, reader: isString, log: isString, offset: isWhole },
  joined: { topic: isString, group: isString, log: isString },
  lend: { topic: isString, group: isString, offset: isWhole, deliveries: (count = 1) => isWhole(count) },
  settled: { topic: isString, group: isString, number: isWhole },
  left: { topic: isString, group: isString, code: isCode },
  log: { id: (id) => isString(id) && id !== "", available: (available) => typeof available === "boolean" },
};

/** Return a packet of v2 after the hello whose fields have their types. */
function checked(packet) {
  const fields = Object.entries(FIELDS[packet.t] ?? {});
  if (!fields.every(([name, right]) => right(packet[name]))) throw fault(4400, "not a valid packet");
  return packet;
}

/** Keeps up a connection to the first place of a list that answers. */
class Link {
  constructor(client, role, places) {
    Object.assign(this, { client, role, known: places, at: 0, connection: null, running: false, stopped: false });
    this.failures = new Map();
    this.leaveSeconds = null;
  }

  /** The places to try in turn. */
  get places() {
    return this.known;
  }

  start() {
    if (this.running || this.stopped) return;
    this.running = true;
    this.failures.clear();
    this.#run();
  }

  stop() {
    this.stopped = true;
    this.wake?.();
    this.connection?.fail(1000, "done");
  }

  /** Find out at once whether the connection is still there, or try at once to get one. */
  check() {
    this.connection?.check();
    this.wake?.();
  }

  send(packet) {
    if (this.connection?.up) this.connection.send(this.client.encode(packet));
  }

  say(state, place, more = {}) {
    const event = { role: this.role, address: place.address, state, protocol: this.client.protocol, ...more };
    this.client.report("onState", event);
  }

  established(connection) {
    this.failures.clear();
    this.since = Date.now();
    this.say("up", connection.place);
    // The application may have closed it when it heard of that.
    if (!this.stopped) this.up();
  }

  async #run() {
    let delay = RECONNECT_MIN_SECONDS;
    while (!this.stopped) {
      const place = this.places[this.at % this.places.length];
      this.since = null;
      this.say("connecting", place);
      const closed = await this.#attempt(place);
      const lasted = this.since !== null && Date.now() - this.since > RECONNECT_MAX_SECONDS * 1000;
      this.connection = null;
      if (this.stopped) break;
      this.failures.set(place, closed);
      const hopeless = this.places.every((each) => forGood(this.failures.get(each)));
      if (hopeless) {
        this.running = false;
        this.say("failed", place, { code: closed.code, reason: closed.reason });
        this.down(closed);
        this.failed(this.error());
        return;
      }
      // This one may be none to try any more: then the first one is next.
      this.at = (this.places.indexOf(place) + 1) % this.places.length;
      if (lasted) delay = RECONNECT_MIN_SECONDS;
      else if (!this.at) delay = Math.min(delay * 2, RECONNECT_MAX_SECONDS);
      let seconds = delay * (0.5 + Math.random() / 2);
      if (this.leaveSeconds !== null)
        seconds = this.places.length > 1 ? 0 : Math.random() * this.leaveSeconds;
      this.leaveSeconds = null;
      this.say("down", place, { code: closed.code, reason: closed.reason, retrySeconds: seconds });
      if (this.stopped) break;
      this.down(closed);
      if (!this.stopped) await this.#pause(seconds);
    }
    this.running = false;
    this.say("closed", this.places[this.at % this.places.length]);
  }

  /** Wait, but no longer than until `wake` is called: a timer that is left would keep a program running. */
  #pause(seconds) {
    return new Promise((resolve) => {
      const timer = after(seconds, resolve);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async #attempt(place, again = false) {
    const { credential, v2 } = this.client;
    let key;
    let binding = new Uint8Array();
    try {
      key = await credential.current();
    } catch (error) {
      return { code: 0, reason: error.message, byPeer: false };
    }
    try {
      if (place.tls && v2) binding = await this.client.binding(place.address);
    } catch (error) {
      return { code: 0, reason: error.message, byPeer: false, forGood: error instanceof WsqueueError };
    }
    if (this.stopped) return { code: 1000, reason: "done", byPeer: false };
    this.connection = new Connection(this, place, key, binding);
    const closed = await this.connection.ended;
    if (closed.code !== TOKEN_ENDED || !credential.ended(key)) return closed;
    // The next attempt has the next token. A node that has refused two of them refuses for good.
    if (this.since !== null) return { ...closed, code: 1001 };
    return again ? closed : this.#attempt(place, true);
  }

  /** Return an error with the last answers of all places. */
  error() {
    const all = this.places.map((place) => [place.address, this.failures.get(place)]);
    const said = all
      .map(([address, closed]) => `${address}: ${closed ? closed.reason : "no answer"}`)
      .join("; ");
    const closed = all.map(([, failure]) => failure).filter(Boolean);
    const every = (...codes) => all.every(([, failure]) => codes.includes(failure?.code));
    let Kind = ConnectError;
    if (every(4401, TOKEN_ENDED)) Kind = AuthenticationError;
    else if (every(4416)) Kind = NotAllowedError;
    return new Kind(`no ${this.role} can be used (${said})`, closed.at(-1)?.code);
  }
}

const forGood = (closed) => Boolean(closed && (closed.forGood || FOR_GOOD.has(closed.code)));

/** Return a message to publish: its data, whether that is a text, its bytes, its headers and its size. */
function messageOf(topic, data, headers) {
  const isText = typeof data === "string";
  if (!isText && !(data instanceof Uint8Array || data instanceof ArrayBuffer))
    throw new TypeError("the data is neither a string nor a Uint8Array nor an ArrayBuffer");
  // A copy, because the caller may go on to use the array.
  const bytes = isText ? utf8.encode(text(data, "the data")) : join([new Uint8Array(data)]);
  const texts = [topic, ...Object.entries(headers ?? {}).flat()];
  const size = texts.reduce((sum, one) => sum + utf8.encode(one).length, bytes.length);
  return { data, isText, bytes, headers, size };
}

/** Return a copy of headers that nodes take, null if there are none. */
function headersOf(headers) {
  if (typeof headers !== "object" || headers === null || Symbol.iterator in headers)
    throw new TypeError("headers is not an object of strings");
  const entries = Object.entries(headers);
  if (entries.length > MAX_HEADERS) throw new WsqueueError(`more than ${MAX_HEADERS} headers`);
  for (const [name, value] of entries) {
    const length = [...text(name, "the name of a header")].length;
    if (length < 1 || length > MAX_HEADER_NAME_CHARACTERS)
      throw new WsqueueError(`the name of a header has not 1 to ${MAX_HEADER_NAME_CHARACTERS} characters`);
    if ([...text(value, `the header ${name}`)].length > MAX_HEADER_VALUE_CHARACTERS)
      throw new WsqueueError(`the header ${name} has more than ${MAX_HEADER_VALUE_CHARACTERS} characters`);
  }
  return entries.length ? Object.fromEntries(entries) : null;
}

/** Return the messages of a batch, all texts or all bytes, as they travel. */
function packed(messages) {
  const parts = messages.map(({ bytes }) => bytes);
  const headers = messages.map((message) => message.headers);
  return {
    sizes: parts.map((part) => part.length),
    data: join(parts),
    ...(messages[0].isText ? {} : { text: false }),
    ...(headers.some(Boolean) ? { headers } : {}),
  };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Return true if these are the rising numbers of batches, and how many of `count` messages each has. */
function areBatches(numbers, counts, count) {
  const whole = (list) => Array.isArray(list) && list.every(isWhole);
  return (
    whole(numbers) && whole(counts) && numbers.length === counts.length && sum(counts) === count &&
    numbers.every((number, index) => !index || number > numbers[index - 1]) &&
    counts.every((one) => one > 0)
  );
}

/** Return the messages of a chain that was delivered, each with its data and headers. */
function messagesOf({ sizes, data, text: isText = true, headers = null }) {
  const check = (right) => {
    if (!right) throw fault(4400, "not the messages of a batch");
  };
  check(Array.isArray(sizes) && sizes.length);
  check(sizes.every(isWhole));
  check(data instanceof Uint8Array && data.length === sum(sizes));
  check(typeof isText === "boolean");
  check(headers === null || (Array.isArray(headers) && headers.length === sizes.length));
  let end = 0;
  return sizes.map((size, index) => {
    const own = headers?.[index] ?? {};
    check(Object.getPrototypeOf(own) === Object.prototype);
    check(Object.values(own).every(isString));
    end += size;
    const bytes = data.subarray(end - size, end);
    return { data: isText ? textOf(bytes) : bytes.slice(), headers: own };
  });
}

/** Return bytes as a text, or as they are if they are none. */
function textOf(bytes) {
  try {
    return fromUtf8.decode(bytes);
  } catch {
    return bytes.slice();
  }
}

/** Publishes through any producer, and sends unconfirmed batches again after a reconnect. */
class PublisherLink extends Link {
  constructor(client, places) {
    super(client, "producer", places);
    this.at = Math.floor(Math.random() * places.length);
    this.secret = client.publisherSecret ?? random(NONCE_BYTES);
    this.number = 0;
    // The first message with an id that was refused or failed: after it no others are taken.
    this.undone = 0;
    this.forming = new Map();
    this.outstanding = new Map();
    this.outstandingOf = new Map();
    this.unsent = [];
    this.messages = this.bytes = 0;
  }

  publish(topic, messages, id) {
    // One call may exceed it, or a long list could never be published.
    if (this.messages >= WINDOW_MESSAGES || this.bytes >= WINDOW_BYTES) {
      throw new WindowFull("too many unconfirmed messages: await earlier calls of publish first");
    }
    if (id !== undefined) this.#checkId(id);
    const waiting = [];
    for (const message of messages) {
      const { size, isText } = message;
      let batch = this.forming.get(topic);
      if (batch && (batch.size + size > BATCH_BYTES || batch.isText !== isText)) {
        this.#number(batch);
        batch = undefined;
      }
      if (!batch) {
        batch = promise({ topic, isText, messages: [], count: 0, size: 0 }, "confirmed");
        this.forming.set(topic, batch);
        queueMicrotask(() => this.#flush());
      }
      batch.messages.push(message);
      batch.count += 1;
      batch.size += size;
      this.bytes += size;
      this.messages += 1;
      if (waiting.at(-1) !== batch.confirmed) waiting.push(batch.confirmed);
      if (id !== undefined) this.#number(batch, id);
    }
    this.start();
    this.#guard();
    return Promise.all(waiting);
  }

  #flush() {
    for (const batch of [...this.forming.values()]) this.#number(batch);
    this.#send();
  }

  #checkId(id) {
    if (this.undone) {
      const again = "make another client, and publish again what is not confirmed, from that id on";
      const reason = `the message with the id ${this.undone} was refused or failed before: ${again}`;
      throw new PublishError(reason, "after_refused");
    }
    if (id <= this.number) {
      const expected = "a higher id, or another client for a message that was published under this id before";
      throw new WsqueueError(`the id ${id} is not above ${this.number}, the one before it: expected ${expected}`);
    }
  }

  #number(batch, number = this.number + 1) {
    this.forming.delete(batch.topic);
    this.number = number;
    const { topic, messages } = batch;
    const numbers = this.outstandingOf.get(topic) ?? new Set();
    this.outstandingOf.set(topic, numbers);
    const after = numbers.has(numbers.last) ? numbers.last : ([...numbers].at(-1) ?? 0);
    numbers.last = this.number;
    batch.payloads = this.client.v2
      ? [pack({ t: "publish", number: this.number, after, topic, messages: packed(messages) })]
      : messages.map(({ data }) => JSON.stringify({ t: "m", d: data, s: topic }));
    batch.messages = null;
    numbers.add(this.number);
    this.outstanding.set(this.number, batch);
    this.unsent.push(this.number);
  }

  #send() {
    while (this.unsent.length && this.connection?.up) {
      if (this.connection.socket.bufferedAmount > SOCKET_BYTES) {
        clearTimeout(this.later);
        this.later = setTimeout(() => this.#send(), 20);
        return;
      }
      const number = this.unsent.shift();
      const batch = this.outstanding.get(number);
      for (const payload of batch?.payloads ?? []) this.connection.send(payload);
      // The classic protocol confirms nothing.
      if (batch && !this.client.v2) this.#settle(number);
    }
  }

  up() {
    clearTimeout(this.guard);
    this.guard = null;
    if (this.places.length > 1) this.connection.watchClosely();
    if (this.client.v2) this.send({ t: "publisher", secret: this.secret });
    this.unsent = [...this.outstanding.keys()];
    this.#send();
  }

  down(closed) {
    // Sending the same data again would end the same way.
    if (closed.byPeer && DATA_REFUSED.has(closed.code)) {
      this.#failAll(new PublishError(`the producer does not take it: ${closed.reason}`, "invalid"));
    }
    this.#guard();
  }

  failed(error) {
    this.#failAll(error);
    this.client.report("onError", error);
  }

  stop() {
    super.stop();
    clearTimeout(this.later);
    this.#failAll(new ConnectError("the client was closed"));
  }

  received(packet) {
    if (packet.t === "ack") {
      for (const [first, last] of packet.numbers) {
        if (first === last) {
          this.#settle(first);
          continue;
        }
        // A range may be far longer than the list of unconfirmed batches.
        for (const number of this.outstanding.keys()) {
          if (number > last) break;
          if (number >= first) this.#settle(number);
        }
      }
    } else if (packet.t === "refused") {
      this.#settle(packet.number, new PublishError(packet.reason, packet.code));
    } else if (packet.t === "draining") {
      this.leaveSeconds = packet.retry_seconds;
      this.connection.fail(1000, "done");
    }
  }

  #settle(number, error = null) {
    const batch = this.outstanding.get(number);
    if (!batch) return;
    this.outstanding.delete(number);
    const numbers = this.outstandingOf.get(batch.topic);
    numbers.delete(number);
    if (!numbers.size) this.outstandingOf.delete(batch.topic);
    this.bytes -= batch.size;
    this.messages -= batch.count;
    if (error) this.undone = Math.min(this.undone || number, number);
    if (error) batch.reject(error);
    else batch.resolve();
  }

  #failAll(error) {
    // Messages that are published from now on have their own time.
    clearTimeout(this.guard);
    this.guard = null;
    for (const batch of [...this.forming.values()]) this.#number(batch);
    for (const number of [...this.outstanding.keys()]) this.#settle(number, error);
    this.unsent = [];
  }

  #guard() {
    if (this.guard || this.connection?.up || !(this.outstanding.size + this.forming.size)) return;
    this.guard = after(OPEN_SECONDS, () => this.#failAll(this.error()));
  }
}

/**
 * Keeps up a connection to the home of a topic, or to another consumer, and finds out which log that one has.
 *
 * `judge` is told whether the consumer is usable: the home from the start, another one once it has named the log.
 */
class ConsumerLink extends Link {
  // The connection has been asked for the topics.
  asked = false;
  #listening = null;

  constructor(client, homeAddress, address = homeAddress, suffix = "") {
    super(client, "consumer", [locate(address, "/subscribe", suffix)]);
    this.homeAddress = homeAddress;
  }

  stop() {
    super.stop();
    clearTimeout(this.#listening);
  }

  up() {
    const isHome = this.connection.place.address === this.homeAddress;
    this.#listening = after(LOG_SECONDS, () => this.#heard(isHome ? "" : null));
    if (isHome) this.judge(true);
  }

  #heard(id, available = true) {
    clearTimeout(this.#listening);
    this.#listening = null;
    const { address } = this.connection.place;
    this.client.noteLog(address, this.homeAddress, id);
    const isUsable = address === this.homeAddress || (id && this.client.mayUse(address, this.homeAddress));
    this.judge(Boolean(available && isUsable));
  }

  down() {
    clearTimeout(this.#listening);
    this.asked = false;
  }

  received(packet) {
    if (packet.t === "log") {
      this.connection.watchClosely();
      this.#heard(packet.id, packet.available);
    } else if (this.#listening) this.#heard("");
    if (packet.t === "draining") this.leaveSeconds = packet.retry_seconds;
  }
}

/** Keeps up a connection to one consumer for a feed. */
class FeedLink extends ConsumerLink {
  constructor(feed, ...places) {
    super(feed.client, ...places);
    // `timer` is the feed's.
    Object.assign(this, { feed, usable: false });
    this.timer = after(AWAY_SECONDS, () => feed.away(this));
  }

  stop() {
    super.stop();
    clearTimeout(this.timer);
  }

  // The application hears of the connection that serves, and not of those that are tried and watched.
  say(...event) {
    if (this === this.feed.serving) super.say(...event);
  }

  judge(usable) {
    this.feed.judge(this, usable);
  }

  down() {
    super.down();
    this.judge(false);
  }

  failed(error) {
    this.feed.failed(this, error);
  }

  received(packet) {
    super.received(packet);
    this.feed.received(packet);
  }
}

/**
 * Subscribes to topics at their home, and continues at the last position after a reconnect; while the home is
 * away, at another consumer that shares its log: docs/protocol.md, "Failover".
 */
class Feed {
  constructor(client, address, suffix) {
    // `other` is a consumer that serves instead of the home, or is tried; `untried` are those to try after it.
    Object.assign(this, { client, subscriptions: new Map(), other: null, untried: [] });
    // Topics that were given up on this connection, each as often as an answer is still to come.
    this.leaving = [];
    this.home = this.serving = new FeedLink(this, address, address, suffix);
  }

  add(subscription) {
    this.subscriptions.set(subscription.topic, subscription);
    subscription.feed = this;
    if (this.serving.asked) subscription.ask();
    this.home.start();
  }

  remove(subscription) {
    const { topic } = subscription;
    this.subscriptions.delete(topic);
    if (!this.subscriptions.size) this.stop();
    else if (this.serving.asked) {
      this.leaving.push(topic);
      this.serving.send({ t: "unsubscribe", topic });
    }
  }

  stop() {
    for (const link of [this.home, this.other]) link?.stop();
  }

  /** Ask for all topics on the connection that serves. */
  ask() {
    this.leaving = [];
    for (const subscription of this.subscriptions.values()) subscription.ask();
  }

  check() {
    for (const link of [this.home, this.other]) link?.check();
  }

  /** Act on whether a consumer is usable now. */
  judge(link, usable) {
    const changed = usable !== link.usable;
    link.usable = usable;
    if (link !== this.home && link !== this.serving) {
      if (usable) this.#serve(link);
      else this.#next();
    } else if (changed) {
      clearTimeout(link.timer);
      if (link === this.serving) for (const one of this.subscriptions.values()) one.reachable?.(usable);
      if (!usable) link.timer = after(AWAY_SECONDS, () => this.away(link));
      else if (link === this.serving) this.#serve(link);
      else link.timer = after(BACK_SECONDS, () => this.#serve(link));
    }
  }

  /** Look for another consumer than one that has not been usable for a while. */
  away(link) {
    if (link === this.home) {
      if (!this.other) this.#look();
    } else if (link !== this.serving) this.#next();
    else if (this.home.usable) this.#serve(this.home);
    else {
      this.#drop();
      this.#look();
    }
  }

  failed(link, error) {
    if (link === this.home && link === this.serving) this.fail(error);
  }

  fail(error) {
    for (const subscription of [...this.subscriptions.values()]) subscription.fail(error);
  }

  received(packet) {
    if (packet.t === "m") {
      const message = { data: text(packet.d, "the data"), headers: {} };
      this.subscriptions.get(packet.s)?.deliver([message]);
      return;
    }
    const { t, topic, log, offset, code } = packet;
    const leaving = this.leaving.indexOf(topic);
    if (leaving >= 0) {
      // Packets before the answer are of a subscription that was closed, and not of one that was made since.
      if (t === "unsubscribed" && !code) this.leaving.splice(leaving, 1);
      return;
    }
    const subscription = this.subscriptions.get(topic);
    if (!subscription) return;
    if (t === "subscribed") subscription.begin(log, offset);
    else if (t === "unsubscribed" && code) subscription.refuse(code);
    else if (t === "unsubscribed") subscription.unsubscribed?.();
    else if (t === "committed") subscription.confirm?.(packet);
    else if (t === "gap") subscription.gap(offset, packet.missed);
    else if (t === "deliver" && subscription.begun) subscription.take(packet);
  }

  async #look() {
    const topic = this.prefix ?? this.subscriptions.keys().next().value;
    const others = await this.client.standIns(topic, this.home.homeAddress);
    if (this.home.usable || this.home.stopped || this.other) return;
    this.untried = others;
    this.#next();
  }

  #next() {
    this.#drop();
    const { homeAddress } = this.home;
    this.untried = this.untried.filter((address) => this.client.mayUse(address, homeAddress));
    const address = this.untried.shift();
    if (address) {
      this.other = new FeedLink(this, homeAddress, address);
      this.other.start();
    } else {
      // A home that refused for good while another one served is asked again.
      this.home.start();
      clearTimeout(this.home.timer);
      const seconds = RECONNECT_MAX_SECONDS * (0.5 + Math.random() / 2);
      this.home.timer = after(seconds, () => this.away(this.home));
    }
  }

  #drop() {
    this.serving = this.home;
    this.other?.stop();
    this.other = null;
  }

  #serve(link) {
    const moved = link !== this.serving;
    clearTimeout(link.timer);
    if (link === this.home) this.#drop();
    this.serving = link;
    // Nothing that is still under way from an unavailable home may come in later.
    if (moved && this.home.asked) this.home.connection.fail(1000, "another consumer serves");
    if (moved) link.say("up", link.places[0]);
    if (link.asked) return;
    link.asked = true;
    this.ask();
  }
}

/** Refuse a start that no packet can hold: the consumer would end the connection, with all of its topics. */
function checkFrom(from) {
  let right = from === "latest" || from === "earliest";
  if (from instanceof Date) right = Number.isFinite(from.getTime());
  else if (typeof from === "number") right = Number.isSafeInteger(from);
  else if (typeof from === "object" && from !== null)
    right = isWhole(from.offset) && isString(from.log ?? "");
  const shown = typeof from === "object" && !(from instanceof Date) ? JSON.stringify(from) : String(from);
  const expected =
    "'latest', 'earliest', an offset, -N for the last N messages, a position { log, offset } or a valid Date";
  expect(right, "from", shown, expected);
}

/** A subscription to a topic, made by `subscribe`. */
class Subscription {
  #numbers = new Map();
  // What was asked for a position or by a named reader, while only the answer has come: a gap may be on its way.
  #asked = null;

  constructor(client, topic, callback, options) {
    Object.assign(this, { client, topic, callback, options, begun: false, closed: false });
    const { from = "latest" } = options;
    checkFrom(from);
    this.position = typeof from === "object" && !(from instanceof Date) ? from : null;
    // Resolves when the consumer delivers, rejects when it refuses permanently.
    promise(this, "ready");
  }

  close() {
    this.closed = true;
    this.client.forget(this);
    this.reject(new ConnectError("the subscription was closed"));
  }

  /** Subscribe on a connection (the feed calls this). */
  ask() {
    this.begun = false;
    const { feed, topic } = this;
    if (this.client.v2) feed.serving.send({ t: "subscribe", topic, ...(this.#asked ?? this.wanted()) });
    else this.begin("", 0);
  }

  wanted() {
    const { from = "latest", reader } = this.options;
    const named = reader === undefined ? {} : { reader };
    if (this.position) {
      const { log, offset } = this.position;
      return { start: "offset", ...(log ? { log } : {}), offset, ...named };
    }
    // Before 1970 there were no messages, and the protocol has no times.
    if (from instanceof Date) return { start: "time", time: Math.max(0, from.getTime() / 1000) };
    if (typeof from !== "number") return { start: from, ...named };
    return from < 0 ? { start: "last", count: -from } : { start: "offset", offset: from };
  }

  begin(log, offset) {
    this.begun = true;
    if (log) {
      if (this.position || this.options.reader) this.#asked ??= this.wanted();
      this.position = { log, offset };
    }
    this.resolve();
  }

  gap(offset, missed) {
    this.#asked = null;
    if (this.position) this.position = { log: this.position.log, offset };
    this.put({ topic: this.topic, missed });
  }

  take({ offset, publisher, numbers, counts, messages: chain }) {
    const messages = messagesOf(chain);
    if (!areBatches(numbers, counts, messages.length)) throw fault(4400, "not a valid packet");
    this.#asked = null;
    this.position = { log: this.position.log, offset: offset + messages.length };
    let repeats = 0;
    if (publisher) {
      // A batch that was stored twice is delivered once; numbers rise, so that repeats come first.
      const last = this.#numbers.get(publisher) ?? 0;
      repeats = sum(counts.filter((_, index) => numbers[index] <= last));
      this.#numbers.delete(publisher);
      this.#numbers.set(publisher, Math.max(last, numbers.at(-1)));
      if (this.#numbers.size > MAX_PUBLISHERS) this.#numbers.delete(this.#numbers.keys().next().value);
    }
    this.deliver(messages.slice(repeats), this.position.log, offset + repeats);
  }

  deliver(messages, log = "", offset = 0) {
    for (const [index, message] of messages.entries()) {
      if (this.closed) return;
      this.put({ topic: this.topic, ...message, log, offset: offset + index });
    }
  }

  put(item) {
    this.client.tell("missed" in item ? this.options.onGap : this.callback, item);
  }

  refuse(code) {
    this.fail(
      code === "full"
        ? new ConnectError(`no place for ${this.what}: there are too many names (${code})`, code)
        : new NotAllowedError(`the subscription to ${this.what} is refused: ${code}`, code),
    );
  }

  get what() {
    const { reader } = this.options;
    return JSON.stringify(this.topic) + (reader === undefined ? "" : ` as the reader "${reader}"`);
  }

  fail(error) {
    this.client.forget(this);
    this.reject(error);
    this.client.tellError(this.options.onError, error);
  }
}

/** Subscribes to the topics of one consumer that begin with a prefix. */
class PrefixFeed extends Feed {
  // The consumer has answered: topics that have begun since then are new from their first message on.
  begun = false;

  constructor(whole, address) {
    super(whole.client, address);
    Object.assign(this, { whole, prefix: whole.topic });
  }

  judge(link, usable) {
    if (link === this.home && this.client.logs.get(link.homeAddress) === "") this.whole.spread();
    super.judge(link, usable);
  }

  ask() {
    super.ask();
    const start = this.begun ? { start: "earliest" } : this.whole.wanted();
    this.serving.send({ t: "follow", prefix: this.prefix, ...start });
  }

  fail(error) {
    this.whole.fail(error);
  }

  received(packet) {
    const { t, topic, code } = packet;
    if (t === "subscribed" && !this.subscriptions.has(topic)) {
      if (this.whole.takes(topic, this.home.homeAddress)) {
        const { callback, options } = this.whole;
        const subscription = new Subscription(this.client, topic, callback, options);
        this.subscriptions.set(topic, Object.assign(subscription, { feed: this }));
      } else this.serving.send({ t: "unsubscribe", topic });
    }
    if (code && (t === "followed" || t === "unsubscribed")) this.whole.refuse(code);
    else if (t === "followed") {
      this.begun = true;
      this.whole.answered();
    } else super.received(packet);
  }
}

/**
 * A subscription to all topics with a prefix, made by `subscribe` with { prefix }.
 *
 * One consumer is asked first. If it has a log of its own, all are, each for the topics whose home it is.
 */
class PrefixSubscription extends Subscription {
  #feeds = [];

  constructor(client, prefix, callback, options) {
    const { from = "latest", group, reader } = options;
    if (group !== undefined || reader !== undefined)
      throw new WsqueueError("a prefix stands for topics: expected neither a group nor a reader with it");
    const isOfEach = ["earliest", "latest"].includes(from) || from < 0 || from instanceof Date;
    expect(isOfEach, "from", from, "'earliest', 'latest', a Date or a negative number with a prefix");
    super(client, prefix, callback, options);
    this.#feeds = [new PrefixFeed(this, client.consumerOf(prefix))];
  }

  get what() {
    return `all topics that begin with ${JSON.stringify(this.topic)}`;
  }

  start() {
    for (const feed of this.#feeds) feed.home.start();
  }

  check() {
    for (const feed of this.#feeds) feed.check();
  }

  stop() {
    for (const feed of this.#feeds) {
      feed.stop();
      for (const subscription of feed.subscriptions.values()) subscription.closed = true;
    }
  }

  /** Ask all consumers, because one of them has a log of its own. */
  spread() {
    if (this.#feeds.length > 1) return;
    const others = new Set(this.client.consumers);
    others.delete(this.#feeds[0].home.homeAddress);
    for (const address of others) this.#feeds.push(new PrefixFeed(this, address));
    this.start();
  }

  /** Return true if a topic is wanted from a consumer: from its home, unless one has all topics. */
  takes(topic, address) {
    const isHere = this.#feeds.length === 1 || this.client.consumerOf(topic) === address;
    return isHere && topic.startsWith(this.topic);
  }

  answered() {
    if (this.#feeds.every(({ begun }) => begun)) this.resolve();
  }
}

/** Messages of groups that the application has settled, so that `autoDone` has nothing to say of them. */
const settled = new WeakSet();

/**
 * Add to a link or a subscription that its messages have outcomes, which the consumer keeps.
 *
 * It has `client`, `callback`, `options`, `reject` and `notKept`; `isIdle` if no outcome waits, and `isOnline` if
 * one can be told; `release` lets go of messages that wait, `giveUp` fails those who wait for outcomes, `thrown`
 * takes an error of the callback, `away` returns the error of a consumer that is, and `leave` is the end.
 */
const withOutcomes = (Base) =>
  class extends Base {
    // Messages that the callback has not got.
    waiting = [];
    closed = false;
    #calling = false;
    #guard = null;
    // The time in which the last outcomes are to be confirmed, once the subscription is closed.
    #closing = null;
    #end = promise({}, "ended");

    /** Let go of messages that the callback has not got; the promise resolves when outcomes are confirmed. */
    close() {
      if (!this.closed) {
        this.closed = true;
        this.#closing = after(OPEN_SECONDS, () => this.finish());
        this.release();
        this.finishIfIdle();
      }
      return this.#end.ended;
    }

    /** Call back with one message after another, each when the promise for the one before has settled. */
    async call() {
      if (this.#calling) return;
      this.#calling = true;
      const { onGap, autoDone } = this.options;
      while (this.waiting.length) {
        const item = this.waiting.shift();
        this.taken?.(item);
        try {
          const answer = "missed" in item ? onGap?.(item) : this.callback?.(item);
          if (answer?.then) await answer;
          if (autoDone && !settled.has(item)) item.done?.();
        } catch (error) {
          this.thrown(error, item);
        }
      }
      this.#calling = false;
    }

    /** Return the promise of an outcome, or one that rejects because it is too late. */
    tell(act) {
      const kept = this.closed ? Promise.reject(new ConnectError(this.notKept)) : act();
      kept.catch(() => {});
      if (!this.closed && !this.isOnline) this.reachable(false);
      return kept;
    }

    /** Tell those who wait that the consumer does not answer; outcomes are sent when it does. */
    reachable(is) {
      if (is) {
        clearTimeout(this.#guard);
        this.#guard = null;
      } else if (this.closed) this.finish();
      else {
        this.#guard ??= after(OPEN_SECONDS, () => {
          this.#guard = null;
          this.giveUp(this.away());
        });
      }
    }

    finishIfIdle() {
      if (this.closed && (!this.isOnline || this.isIdle)) this.finish();
    }

    finish(error = new ConnectError("the subscription was closed")) {
      this.closed = true;
      this.waiting = [];
      for (const timer of [this.#guard, this.#closing]) clearTimeout(timer);
      this.leave();
      this.reject(error);
      this.giveUp(new ConnectError(this.notKept));
      this.#end.resolve();
    }

    fail(error) {
      this.finish(error);
      this.client.tellError(this.options.onError, error);
    }
  };

/** A message that a named reader has got: { topic, data, headers, log, offset }. */
class ReaderMessage {
  #reader;
  #number;

  constructor(reader, number, fields) {
    this.#reader = reader;
    this.#number = number;
    Object.assign(this, fields);
  }

  /** Say that it and all before it are done; the promise resolves when that is kept. */
  done() {
    const { log, offset } = this;
    return this.#reader.commit(this.#number, { log, offset: offset + 1 });
  }
}

/** A subscription under a name, made by `subscribe` with `reader`; it has a connection of its own. */
class ReaderSubscription extends withOutcomes(Subscription) {
  notKept =
    "the subscription is closed, and it is not kept that the message is done: the reader will get it again";
  // Messages are counted as they come, because offsets do not rise where a log is replaced by another one:
  // up to which one all is said to be done, the commit that is under way says so, and the consumer has kept it.
  #count = 0;
  #said = { number: 0 };
  #sent = null;
  #kept = 0;
  #waiters = [];
  // While too much waits for the callback, it is unsubscribed: the answers to commits come behind messages.
  #characters = 0;
  #held = false;
  #unsubscribing = false;

  constructor(client, topic, callback, options) {
    const { reader } = options;
    const from = options.from ?? "earliest";
    checkName("reader", reader);
    checkStart(from, "a reader, which goes on where it was");
    super(client, topic, callback, { ...options, from });
    this.reader = reader;
  }

  get isIdle() {
    return this.#said.number === this.#kept;
  }

  get isOnline() {
    return this.feed.serving.usable;
  }

  away() {
    return this.feed.home.error();
  }

  /** Wait until all that was said is kept. */
  flush() {
    return this.isIdle ? Promise.resolve() : this.commit(this.#said.number, this.#said.position);
  }

  commit(number, position) {
    return this.tell(() => {
      if (number <= this.#kept) return Promise.resolve();
      if (number > this.#said.number) this.#said = { number, position };
      // All that is said in a turn, or while a commit is under way, is one commit.
      let waiter = this.#waiters.at(-1);
      if (!waiter || waiter.number <= this.#sent?.number) {
        waiter = promise({}, "kept");
        this.#waiters.push(waiter);
        queueMicrotask(() => this.#send());
      }
      waiter.number = this.#said.number;
      return waiter.kept;
    });
  }

  ask() {
    this.#unsubscribing = false;
    this.#sent = null;
    if (!this.#held) super.ask();
    this.reachable(true);
    this.#send();
  }

  unsubscribed() {
    this.#unsubscribing = false;
    if (!this.#held) super.ask();
  }

  confirm({ log, offset }) {
    const { number, position } = this.#sent ?? {};
    if (log !== position?.log || offset !== position.offset) return;
    this.#kept = number;
    this.#sent = null;
    while (this.#waiters[0]?.number <= number) this.#waiters.shift().resolve();
    this.#send();
    this.finishIfIdle();
  }

  put(item) {
    if (this.closed) return;
    if ("data" in item) {
      this.#count += 1;
      this.#characters += item.data.length;
      this.waiting.push(new ReaderMessage(this, this.#count, item));
    } else this.waiting.push(item);
    this.call();
    if (this.#exceeds(1)) this.#hold();
  }

  taken({ data = "" }) {
    this.#characters -= data.length;
    if (!this.#held || this.#exceeds(0.5)) return;
    this.#held = false;
    if (this.feed.serving.asked && !this.#unsubscribing) super.ask();
  }

  // Messages behind it may be done, and then this one would be too.
  async thrown(error) {
    await this.close();
    this.client.tellError(this.options.onError, error);
  }

  release() {
    this.waiting = [];
    this.#hold();
  }

  giveUp(error) {
    for (const { reject } of this.#waiters.splice(0)) reject(error);
  }

  leave() {
    this.client.forget(this);
  }

  #exceeds(part) {
    const characters = part * MAX_WAITING_CHARACTERS;
    return this.waiting.length > part * MAX_WAITING_MESSAGES || this.#characters > characters;
  }

  #hold() {
    this.#held = true;
    if (!this.feed.serving.asked || this.#unsubscribing) return;
    this.#unsubscribing = true;
    this.feed.serving.send({ t: "unsubscribe", topic: this.topic });
  }

  #send() {
    if (!this.feed.serving.asked || this.#sent || this.isIdle) return;
    this.#sent = this.#said;
    const { topic, reader } = this;
    this.feed.serving.send({ t: "commit", topic, reader, ...this.#sent.position });
  }
}

function expect(right, name, value, expected) {
  if (!right) throw new WsqueueError(`${name} is ${value}, expected ${expected}`);
}

function checkName(what, name) {
  const expected = "1 to 64 letters, digits, '.', '_' and '-', and a letter or digit first";
  expect(isString(name) && GROUP_NAME.test(name), what, name, expected);
}

function checkStart(from, whose) {
  expect(["earliest", "latest"].includes(from), "from", from, `'earliest' or 'latest' with ${whose}`);
}

/** Refuse wishes that would do nothing, because the subscription is not one of a group. */
function checkWithoutGroup({ prefetch, leaseSeconds, maxDeliveries, orderKey, autoDone, reader }) {
  if ([prefetch, leaseSeconds, maxDeliveries, orderKey].some((wish) => wish !== undefined))
    throw new WsqueueError(
      "prefetch, leaseSeconds, maxDeliveries and orderKey are for a group: expected group with them",
    );
  if (autoDone && reader === undefined)
    throw new WsqueueError("autoDone is for a reader or a group: expected one of them with it");
}

/** Return the packet with the wishes of a member of a group; it throws if one of them cannot be. */
function joinOf(topic, options) {
  const { group, from: start = "earliest", orderKey, onGap, reader } = options;
  const { prefetch = 10, leaseSeconds = 30, maxDeliveries = 5 } = options;
  const whole = (name, value, high) => {
    const right = Number.isInteger(value) && within(value, 1, high);
    expect(right, name, value, `a whole number from 1 to ${high}`);
  };
  checkName("group", group);
  checkStart(start, "a group");
  if (onGap !== undefined) throw new WsqueueError("a group has no onGap: its consumer tells of lost messages");
  if (reader !== undefined) throw new WsqueueError("a group has no reader: expected one of the two names");
  whole("prefetch", prefetch, MAX_PREFETCH);
  whole("maxDeliveries", maxDeliveries, MAX_DELIVERIES);
  const lease = `a number from ${MIN_LEASE_SECONDS} to ${MAX_LEASE_SECONDS}`;
  const isLease = Number.isFinite(leaseSeconds) && within(leaseSeconds, MIN_LEASE_SECONDS, MAX_LEASE_SECONDS);
  expect(isLease, "leaseSeconds", leaseSeconds, lease);
  const wishes = { prefetch, lease_seconds: leaseSeconds, max_deliveries: maxDeliveries, start };
  if (orderKey === undefined) return { t: "join", topic, group, ...wishes };
  const isHeader = within([...text(orderKey, "orderKey")].length, 1, MAX_HEADER_NAME_CHARACTERS);
  expect(isHeader, "orderKey", `"${orderKey}"`, `1 to ${MAX_HEADER_NAME_CHARACTERS} characters`);
  return { t: "join", topic, group, ...wishes, order_key: orderKey };
}

/**
 * A message that a group has lent: { topic, data, headers, log, offset, deliveries }.
 *
 * The promises of its methods resolve when the consumer has kept the outcome.
 */
class GroupMessage {
  #member;

  constructor(member, fields) {
    this.#member = member;
    Object.assign(this, fields);
  }

  /** Say that it is done: then it is never lent again. */
  done() {
    return this.#member.settle(this, "done");
  }

  /** Give it back, to be lent again, perhaps to another member, and not before a delay. */
  again(delaySeconds = 0) {
    if (!(Number.isFinite(delaySeconds) && delaySeconds >= 0 && delaySeconds <= MAX_DELAY_SECONDS))
      throw new WsqueueError(`the delay is ${delaySeconds}, expected 0 to ${MAX_DELAY_SECONDS} seconds`);
    return this.#member.settle(this, "again", { delay: delaySeconds });
  }

  /** Give it up: it becomes a dead letter. */
  reject(reason) {
    const cut = [...text(reason, "the reason")].slice(0, MAX_REASON_CHARACTERS).join("");
    return this.#member.settle(this, "reject", { reason: cut });
  }

  /** Begin its lease anew; the promise also resolves when the lease ends with the connection. */
  extend() {
    return this.#member.settle(this, "extend");
  }
}

/**
 * A membership in a group, made by `subscribe` with `group`; it has a connection of its own.
 *
 * If consumers share a log, the group may be at any of them, which one tells from another by trying.
 */
class GroupSubscription extends withOutcomes(ConsumerLink) {
  notKept = "the subscription is closed, and the outcome of the message is not kept: it will be lent again";
  #join;
  // Id of the log in which messages are lent, null while this client is no member.
  #log = null;
  // Outcomes, each of one or more messages, that are to be sent, and those that are not confirmed.
  #unsent = [];
  #sent = [];
  #number = 0;
  #renewing = null;

  constructor(client, topic, callback, options) {
    super(client, client.consumerOf(topic));
    this.#join = joinOf(topic, options);
    Object.assign(this, { topic, callback, options, group: options.group });
    // Resolves when this client is a member, rejects when it cannot become one.
    promise(this, "ready");
  }

  get isIdle() {
    return !this.#outcomes().length;
  }

  get isOnline() {
    return this.#log !== null;
  }

  away() {
    return this.error();
  }

  /** Wait until all outcomes are kept. */
  async flush() {
    if (!(this.closed || this.isIdle || this.isOnline)) this.reachable(false);
    await Promise.all(this.#outcomes().map(({ kept }) => kept));
  }

  settle(message, how, more = {}) {
    const { log, offset } = message;
    if (how !== "extend") settled.add(message);
    return this.tell(() => this.#add(how, log, [offset], more).kept);
  }

  get places() {
    return this.known.filter(({ address }) => this.client.mayUse(address, this.homeAddress));
  }

  async start() {
    const others = await this.client.standIns(this.topic, this.homeAddress);
    this.known.push(...others.map((address) => locate(address, "/subscribe")));
    super.start();
  }

  judge(usable) {
    if (!usable) this.connection.fail(1000, "another consumer may have the group");
    else if (!this.asked) {
      this.asked = true;
      this.send(this.#join);
    }
  }

  down() {
    super.down();
    // Others get the messages that the callback has not got, and leases ended with the connection.
    this.#log = null;
    this.waiting = [];
    clearInterval(this.#renewing);
    const [kept, lost] = [[], []];
    for (const one of this.#outcomes()) (["extend", "release"].includes(one.how) ? lost : kept).push(one);
    for (const { resolve } of lost) resolve();
    this.#unsent = kept;
    this.#sent = [];
    this.#number = 0;
    this.reachable(false);
  }

  failed(error) {
    if (!this.stopped) this.fail(error);
  }

  received(packet) {
    super.received(packet);
    const { t, code, reason } = packet;
    if (t === "lend") this.#take(packet);
    else if (t === "settled") {
      while (this.#sent[0]?.number <= packet.number) this.#sent.shift().resolve();
      this.finishIfIdle();
    } else if (t === "joined") this.#joined(packet.log);
    else if (t === "left" && code === "elsewhere") this.judge(false);
    else if (t === "left" && code) {
      const Kind = code === "not_allowed" ? NotAllowedError : ConnectError;
      const refused = `no membership in the group ${JSON.stringify(this.group)}: ${reason ?? "refused"}`;
      this.failed(new Kind(`${refused} (${code})`, code));
    } else if (t === "draining") this.release();
  }

  #joined(log) {
    this.reachable(true);
    this.#log = log;
    // Messages from before, if there are any, are lent again.
    this.waiting = [];
    this.resolve();
    this.#send();
    clearInterval(this.#renewing);
    const seconds = this.#join.lease_seconds / RENEWALS;
    this.#renewing = setInterval(() => this.#settleWaiting("extend"), seconds * 1000);
  }

  #take({ topic, offset: first, deliveries = 1, messages }) {
    const log = this.#log;
    if (log === null) return;
    // After a reconnect, messages come that are done, and of which the consumer has not heard it yet.
    const done = this.#outcomes().filter((one) => one.how === "done" && one.log === log);
    const isDone = (offset) =>
      done.some(({ offsets }) => offsets.some(([begin, end]) => begin <= offset && offset <= end));
    for (const [index, message] of messagesOf(messages).entries()) {
      const offset = first + index;
      if (isDone(offset)) continue;
      this.waiting.push(new GroupMessage(this, { topic, ...message, log, offset, deliveries }));
    }
    if (this.closed) this.release();
    else this.call();
  }

  thrown(error, item) {
    if (!settled.has(item) && !this.closed) item.again();
    this.client.report("onError", error);
  }

  #outcomes() {
    return [...this.#sent, ...this.#unsent];
  }

  /** Add the outcome of messages, if it can be to an outcome of the same kind, and return the last of these. */
  #add(how, log, offsets, more = {}) {
    const kind = JSON.stringify([how, log, more]);
    let outcome = this.#unsent.at(-1);
    for (const offset of offsets) {
      const last = outcome?.offsets.at(-1);
      if (outcome?.kind === kind && offset === last[1] + 1) last[1] = offset;
      else if (outcome?.kind === kind && outcome.offsets.length < MAX_SETTLED_RANGES) {
        outcome.offsets.push([offset, offset]);
      } else {
        outcome = promise({ kind, how, log, more, offsets: [[offset, offset]] }, "kept");
        this.#unsent.push(outcome);
        // Outcomes of one turn share packets.
        queueMicrotask(() => this.#send());
      }
    }
    return outcome;
  }

  #settleWaiting(how) {
    if (this.#log !== null) this.#add(how, this.#log, this.waiting.map(({ offset }) => offset));
  }

  release() {
    if (this.waiting.length) this.#settleWaiting("release");
    // A message may be on its way, until the consumer confirms that it lends nothing more.
    else if (this.#log !== null) this.#add("release", this.#log, [Number.MAX_SAFE_INTEGER]);
    this.waiting = [];
    this.#send();
  }

  #send() {
    if (this.#log === null) return;
    for (const outcome of this.#unsent.splice(0)) {
      const { how, log, more, offsets } = outcome;
      outcome.number = this.#number += 1;
      this.#sent.push(outcome);
      const { topic, group } = this;
      this.send({ t: "settle", topic, group, number: outcome.number, log, how, offsets, ...more });
    }
  }

  giveUp(error) {
    for (const outcome of this.#outcomes()) {
      // No later outcome shares it.
      outcome.kind = null;
      outcome.reject(error);
      // It is told later, and who asks from now on waits for that.
      if (!this.closed) promise(outcome, "kept");
    }
  }

  leave() {
    this.client.members.delete(this);
    this.#log = null;
    clearInterval(this.#renewing);
    this.stop();
  }
}

/**
 * Publishes through any producer, and subscribes at the consumer of each topic, or one that shares its log.
 *
 * Options:
 * consumers: addresses, in the order that all nodes share; producers: addresses; psk: the pre-shared key, and
 * name: its name if it has one; or token: a token, or a (perhaps async) function that brings one;
 * publisherSecret: 32 bytes (Uint8Array) that the application keeps, to publish with ids of its own;
 * protocol: "v2" or "classic"; helloOrder: "document" or "reversed";
 * channelBinding: for wss:// with v2, an object or a (perhaps async) function that maps an address to the
 * SHA-256 of its certificate in hexadecimal; onState, onError: callbacks;
 * WebSocket: a class, if there is no global one.
 */
export class WsqueueClient {
  #publisher = null;
  #feeds = new Map();
  #options;
  #closed = false;
  #check = () => {
    for (const each of [this.#publisher, ...this.#feeds.values(), ...this.members]) each?.check();
  };

  constructor(options) {
    const { consumers = [], producers = [], token, protocol = "v2", helloOrder = "document" } = options;
    const { publisherSecret } = options;
    if (!globalThis.crypto?.subtle) {
      throw new WsqueueError("there is no Web Crypto here: a page needs https, or to come from localhost");
    }
    if (protocol !== "v2" && protocol !== "classic")
      throw new TypeError('protocol is neither "v2" nor "classic"');
    if (helloOrder !== "document" && helloOrder !== "reversed")
      throw new TypeError('helloOrder is neither "document" nor "reversed"');
    if (protocol === "classic" && token !== undefined)
      throw new WsqueueError("the classic protocol has no tokens");
    if (protocol === "classic" && publisherSecret !== undefined)
      throw new WsqueueError("the classic protocol has no publisherSecret");
    if (publisherSecret !== undefined && !isSecret(publisherSecret))
      throw new TypeError(`publisherSecret is not a Uint8Array of ${NONCE_BYTES} bytes`);
    this.publisherSecret = publisherSecret?.slice();
    this.#options = options;
    this.consumers = [...consumers];
    this.producers = [...producers];
    this.protocol = protocol;
    this.v2 = protocol === "v2";
    this.helloOrder = helloOrder;
    // Which logs the consumers share, by their addresses; "" for one that has a log of its own, and null for one
    // that named none in time: it is tried again, because this page may have stood still meanwhile.
    this.logs = new Map();
    // The log that stands for that of a home which has never been heard.
    this.log = null;
    // The memberships in groups, and the subscriptions to prefixes.
    this.members = new Set();
    this.credential = new Credential(options);
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.WebSocket) throw new WsqueueError("there is no WebSocket here: pass a class as `WebSocket`");
    this.producers.forEach((address) => locate(address, "/produce"));
    this.consumers.forEach((address) => locate(address, "/subscribe"));
  }

  /**
   * Publish a string, a Uint8Array or an ArrayBuffer, or a list of them, each with the headers, an object of
   * strings. In v2 the promise resolves once they are in the log; classic has neither bytes nor headers.
   * With a publisherSecret, one message with its id: an integer, above all that the client was given before.
   */
  async publish(topic, data, { headers = {}, id } = {}) {
    this.#checkOpen();
    text(topic, "the topic");
    if ((id === undefined) !== (this.publisherSecret === undefined))
      throw new WsqueueError("a message has an id if its client has a publisherSecret, and only then");
    const checked = headersOf(headers);
    const list = (Array.isArray(data) ? data : [data]).map((item) => messageOf(topic, item, checked));
    if (!list.length) throw new WsqueueError("no data to publish");
    if (id !== undefined && list.length > 1) throw new WsqueueError("an id belongs to one message");
    if (id !== undefined && !(Number.isSafeInteger(id) && id > 0))
      throw new WsqueueError(`${id} is not an id: expected an integer, 1 to ${Number.MAX_SAFE_INTEGER}`);
    if (!this.v2 && (checked || !list.every(({ isText }) => isText)))
      throw new PublishError("the classic protocol carries texts without headers", "invalid");
    if (!this.producers.length) throw new ConnectError("no producer is known");
    this.#listen();
    this.#publisher ??= new PublisherLink(
      this,
      this.producers.map((address) => locate(address, "/produce")),
    );
    await this.#publisher.publish(topic, list, id);
  }

  /**
   * Call back with { topic, data, headers, log, offset } for each message of a topic; return a Subscription.
   * from: "latest", "earliest", an offset, -N for the last N messages, a position { log, offset } or a Date:
   * v2 only, but for "latest". With a `group`, be a member of that worker group and return a GroupSubscription;
   * with a `reader`, go on where the reader of that name was and return a ReaderSubscription. Instead of a topic,
   * { prefix } stands for all topics that begin with it, those too that begin later.
   */
  subscribe(topic, callback, options = {}) {
    this.#checkOpen();
    const prefix = topic?.prefix;
    text(prefix ?? topic, prefix === undefined ? "the topic" : "the prefix");
    if (!this.consumers.length) throw new ConnectError("no consumer is known");
    if (!this.v2 && (topic === "." || topic === "..")) {
      throw new WsqueueError("a browser cannot ask for this topic in the classic protocol");
    }
    if (options.group === undefined) checkWithoutGroup(options);
    const topics = sum([...this.#feeds.values()].map((each) => each.subscriptions.size));
    if (topics + this.members.size >= MAX_TOPICS) throw new WsqueueError(`more than ${MAX_TOPICS} topics`);
    if (prefix !== undefined) return this.#begin(PrefixSubscription, "prefixes", prefix, callback, options);
    if (options.group !== undefined)
      return this.#begin(GroupSubscription, "groups", topic, callback, options);
    const named = options.reader !== undefined;
    if (named && !this.v2) throw new WsqueueError("the classic protocol has no named readers");
    if (!this.v2 && (options.from ?? "latest") !== "latest")
      throw new WsqueueError("the classic protocol keeps no messages: expected no from but 'latest'");
    const subscription = new (named ? ReaderSubscription : Subscription)(this, topic, callback, options);
    const name = named ? subscription : this.#feedOf(topic);
    let feed = this.#feeds.get(name);
    if (feed?.subscriptions.has(topic))
      throw new WsqueueError(`already subscribed to ${JSON.stringify(topic)}`);
    if (!feed) {
      const suffix = this.v2 ? "" : `/${encodeURIComponent(topic)}`;
      feed = new Feed(this, this.consumerOf(topic), suffix);
      this.#feeds.set(name, feed);
      this.#listen();
    }
    feed.add(subscription);
    return subscription;
  }

  #begin(Kind, kinds, ...wishes) {
    if (!this.v2) throw new WsqueueError(`the classic protocol has no ${kinds}`);
    const subscription = new Kind(this, ...wishes);
    this.members.add(subscription);
    this.#listen();
    subscription.start();
    return subscription;
  }

  /** Close all connections; unconfirmed messages fail, and subscriptions end as with their `close`. */
  close() {
    this.#closed = true;
    for (const member of this.members) member.close();
    for (const feed of this.#feeds.values()) {
      for (const subscription of [...feed.subscriptions.values()]) subscription.close();
    }
    this.#publisher?.stop();
    for (const event of WAKING_EVENTS) globalThis.removeEventListener?.(event, this.#check);
  }

  /** Return the address of the consumer of a topic. */
  consumerOf(topic) {
    return this.consumers[consumerOf(topic, this.consumers.length)];
  }

  // The classes above use the methods below.

  /** Return the addresses of the other consumers, in the order in which they stand in for the home of a topic. */
  async standIns(topic, home) {
    const ranked = this.consumers.map(async (address, index) => {
      const digest = await sha256(utf8.encode(topic + index));
      return [String.fromCharCode(...digest), address];
    });
    const order = (await Promise.all(ranked)).sort(([one], [two]) => (one < two ? -1 : 1));
    return order.map(([, address]) => address).filter((address) => address !== home);
  }

  /** Note the log that a consumer has named for topics of a home, "" for one of its own, null for no answer. */
  noteLog(address, home, id) {
    this.logs.set(address, id);
    if (id && (address === home || !this.log)) this.log = id;
  }

  /** Return true if a consumer may serve instead of the home, as far as it is known which logs they share. */
  mayUse(address, home) {
    if (address === home) return true;
    const { logs } = this;
    const own = logs.get(home);
    const its = logs.get(address);
    if (!this.v2 || own === "" || its === "") return false;
    if (its && its !== (own ?? this.log)) return false;
    // While nobody has been heard, one may be tried; after one without a shared log, no more.
    return !logs.size || [...logs.values()].some(Boolean);
  }

  encode(packet) {
    return this.v2 ? pack(packet) : JSON.stringify(packet);
  }

  forget(subscription) {
    if (this.members.delete(subscription)) subscription.stop();
    const name = this.#feeds.has(subscription) ? subscription : this.#feedOf(subscription.topic);
    const feed = this.#feeds.get(name);
    if (feed?.subscriptions.get(subscription.topic) !== subscription) return;
    feed.remove(subscription);
    if (!feed.subscriptions.size) this.#feeds.delete(name);
  }

  async report(hook, value) {
    try {
      await this.#options[hook]?.(value);
    } catch (error) {
      console.error(error);
    }
  }

  /** Call back; an error of the callback, or of its promise, is reported. */
  async tell(callback, value) {
    try {
      await callback?.(value);
    } catch (error) {
      this.report("onError", error);
    }
  }

  tellError(callback, error) {
    if (callback) this.tell(callback, error);
    else this.report("onError", error);
  }

  async binding(address) {
    const { channelBinding = {} } = this.#options;
    // The browser has verified the certificate, which is a proxy's, or the node takes those that do not name it.
    if (channelBinding === "none") return new Uint8Array();
    const hex =
      typeof channelBinding === "function" ? await channelBinding(address) : channelBinding[address];
    if (!/^[0-9a-f]{64}$/i.test(hex ?? "")) {
      throw new WsqueueError(`channelBinding lacks the SHA-256 of the certificate of ${address}`);
    }
    return Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
  }

  #listen() {
    for (const event of WAKING_EVENTS) globalThis.addEventListener?.(event, this.#check);
  }

  // A v2 connection has all topics of a consumer, a classic connection has one topic.
  #feedOf(topic) {
    return this.v2 ? this.consumerOf(topic) : `topic ${topic}`;
  }

  #checkOpen() {
    if (this.#closed) throw new WsqueueError("the client is closed");
  }
}
