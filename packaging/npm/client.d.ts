// Types of client.js: docs/javascript.md. They need no types of browsers or of Node.

export const SUBPROTOCOL: string;
export const WINDOW_MESSAGES: number;
export const WINDOW_BYTES: number;
export const BATCH_BYTES: number;
export const SOCKET_BYTES: number;
export const MAX_TOPICS: number;
export const MAX_PUBLISHERS: number;
export const MAX_EARLY_BYTES: number;
export const MAX_HEADERS: number;
export const MAX_HEADER_NAME_CHARACTERS: number;
export const MAX_HEADER_VALUE_CHARACTERS: number;
export const MAX_PREFETCH: number;
export const MIN_LEASE_SECONDS: number;
export const MAX_LEASE_SECONDS: number;
export const MAX_DELIVERIES: number;
export const MAX_DELAY_SECONDS: number;
export const MAX_REASON_CHARACTERS: number;
export const MAX_SETTLED_RANGES: number;
export const RENEWALS: number;
export const MAX_WAITING_MESSAGES: number;
export const MAX_WAITING_CHARACTERS: number;
export const HELLO_SECONDS: number;
export const RENEW_SECONDS: number;
export const SILENCE_SECONDS: number;
export const ANSWER_SECONDS: number;
export const CLOSE_WATCH_SECONDS: number;
export const OPEN_SECONDS: number;
export const RECONNECT_MIN_SECONDS: number;
export const RECONNECT_MAX_SECONDS: number;
export const AWAY_SECONDS: number;
export const BACK_SECONDS: number;
export const LOG_SECONDS: number;

/** A problem in a sentence; `code` is a close code or the code of a refusal. */
export class WsqueueError extends Error {
  constructor(message: string, code?: number | string);
  readonly code: number | string;
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

/** A value that MessagePack can have. */
export type Packable =
  | null
  | boolean
  | number
  | string
  | Uint8Array
  | readonly Packable[]
  | { readonly [name: string]: Packable };
/** Return a value as MessagePack. */
export function pack(value: Packable): Uint8Array;
/** Return the value of MessagePack that fills a Uint8Array; it throws if that is anything else. */
export function unpack(bytes: Uint8Array): unknown;
/** Return the hash of a topic, 0 to 2 ** 31; dead letters have that of the topic that they come from. */
export function topicHash(topic: string): number;
/** Return the index of the consumer that a topic belongs to. */
export function consumerOf(topic: string, consumers: number): number;

/** Data to publish as one message. */
export type Data = string | Uint8Array | ArrayBuffer;

export type Headers = Record<string, string>;

/** A place in the log of a topic. */
export interface Position {
  log: string;
  offset: number;
}

export interface Message extends Position {
  topic: string;
  /** As it was published; a text that is not UTF-8 comes as bytes. */
  data: string | Uint8Array;
  /** Empty for a message without any. */
  headers: Headers;
}

/** A message that a group has lent. The promises resolve when the consumer has kept the outcome. */
export interface GroupMessage extends Message {
  /** How often it was lent, this time included. */
  deliveries: number;
  /** Say that it is done: then it is never lent again. */
  done(): Promise<void>;
  /** Give it back, to be lent again, perhaps to another member, and not before a delay. */
  again(delaySeconds?: number): Promise<void>;
  /** Give it up: it becomes a dead letter. */
  reject(reason: string): Promise<void>;
  /** Begin its lease anew. */
  extend(): Promise<void>;
}

/** A message that a named reader has got. */
export interface ReaderMessage extends Message {
  /** Say that it and all before it are done; the promise resolves when that is kept. */
  done(): Promise<void>;
}

/** Messages that were lost; `missed` is null if their number is unknown. */
export interface Gap {
  topic: string;
  missed: number | null;
}

/** A change of a connection. */
export interface State {
  role: "consumer" | "producer";
  address: string;
  state: "connecting" | "up" | "down" | "failed" | "closed";
  protocol: "v2" | "classic";
  reason?: string;
  code?: number;
  retrySeconds?: number;
}

/** Options of every client: docs/javascript.md, "Make a client". */
export interface CommonOptions {
  /** Addresses, in the order that all nodes share. */
  consumers?: readonly string[];
  producers?: readonly string[];
  /** 32 bytes that the application keeps, to publish with ids of its own. */
  publisherSecret?: Uint8Array;
  protocol?: "v2" | "classic";
  helloOrder?: "document" | "reversed";
  /** For v2 at wss:// addresses: the SHA-256 of each certificate in hexadecimal by address, or "none". */
  channelBinding?:
    | "none"
    | Readonly<Record<string, string>>
    | ((address: string) => string | undefined | Promise<string | undefined>);
  onState?: (state: State) => unknown;
  /** Called with the error that ended publishing or a subscription for good, and with any that a callback throws. */
  onError?: (error: unknown) => unknown;
  /** A class, if there is no global one; those of packages have types of their own. */
  WebSocket?: new (url: string, protocols?: string[]) => any;
}

export interface KeyOptions extends CommonOptions {
  /** The pre-shared key, without the line feed at the end of a file. */
  psk: string;
  /** Name of the key, if the nodes know it under one. */
  name?: string;
  token?: undefined;
}

export interface TokenOptions extends CommonOptions {
  /** A token, or a function that brings one. */
  token: string | (() => string | Promise<string>);
  psk?: undefined;
  name?: undefined;
}

export type ClientOptions = KeyOptions | TokenOptions;

export interface PublishOptions {
  headers?: Readonly<Headers>;
  /** With a `publisherSecret`, and only then: an integer above all that the client was given before. */
  id?: number;
}

export interface SubscribeOptions {
  /** The first message: the next one, the oldest, an offset, -N for the last N, a position or a time. */
  from?: "latest" | "earliest" | number | Readonly<Position> | Date;
  onGap?: (gap: Gap) => unknown;
  onError?: (error: unknown) => unknown;
  group?: undefined;
  reader?: undefined;
}

export interface PrefixOptions extends SubscribeOptions {
  /** The first message of each topic; a number is negative. */
  from?: "latest" | "earliest" | number | Date;
}

export interface GroupOptions {
  group: string;
  prefetch?: number;
  leaseSeconds?: number;
  maxDeliveries?: number;
  /** Messages with the same value in this header keep their order. */
  orderKey?: string;
  /** True if a message without an outcome is done when the callback returns, or its promise resolves. */
  autoDone?: boolean;
  /** Where a group begins that is new. */
  from?: "latest" | "earliest";
  onError?: (error: unknown) => unknown;
  onGap?: undefined;
  reader?: undefined;
}

export interface ReaderOptions {
  reader: string;
  /** Where a reader begins that is new. */
  from?: "latest" | "earliest";
  /** True if a message is done when the callback returns, or its promise resolves. */
  autoDone?: boolean;
  onGap?: (gap: Gap) => unknown;
  onError?: (error: unknown) => unknown;
  group?: undefined;
}

/** A subscription to a topic, or to all topics with a prefix. */
export interface Subscription {
  /** Resolves when the consumer delivers, rejects when it refuses permanently. */
  readonly ready: Promise<void>;
  /** Place at which another subscription would go on, in v2; null for a prefix, and before the first answer. */
  readonly position: Position | null;
  close(): void;
}

/** A membership in a group; `ready` resolves when this client is a member. */
export interface GroupSubscription {
  readonly ready: Promise<void>;
  /** Wait until all outcomes are kept. */
  flush(): Promise<unknown>;
  /** Give back the messages that wait; the promise resolves when outcomes are confirmed. */
  close(): Promise<void>;
}

/** A subscription under a name. */
export interface ReaderSubscription {
  readonly ready: Promise<void>;
  readonly position: Position | null;
  /** Wait until all that was said is kept. */
  flush(): Promise<unknown>;
  /** Let go of messages that wait; the promise resolves when all that was said is kept. */
  close(): Promise<void>;
}

/** Publishes through any producer, and subscribes at the consumer of each topic, or one that shares its log. */
export class WsqueueClient {
  constructor(options: ClientOptions);
  readonly consumers: string[];
  readonly producers: string[];
  readonly protocol: "v2" | "classic";
  /** Publish a message, or a list of them; in v2 the promise resolves when they are in the log of the topic. */
  publish(topic: string, data: Data | readonly Data[], options?: PublishOptions): Promise<void>;
  /** Be a member of a worker group. */
  subscribe(
    topic: string,
    callback: (message: GroupMessage) => unknown,
    options: GroupOptions,
  ): GroupSubscription;
  /** Go on where the reader of that name was. */
  subscribe(
    topic: string,
    callback: (message: ReaderMessage) => unknown,
    options: ReaderOptions,
  ): ReaderSubscription;
  /** Call back for each message of a topic. */
  subscribe(topic: string, callback: (message: Message) => unknown, options?: SubscribeOptions): Subscription;
  /** Call back for each message of all topics that begin with the prefix, those too that begin later. */
  subscribe(
    topics: { prefix: string },
    callback: (message: Message) => unknown,
    options?: PrefixOptions,
  ): Subscription;
  /** Close all connections; unconfirmed messages fail, and subscriptions end as with their `close`. */
  close(): void;
  /** Return the address of the consumer of a topic. */
  consumerOf(topic: string): string;
}
