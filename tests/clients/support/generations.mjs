// The generations of phoenix.js: one published release for each, and what it can do.

/**
 * One row per generation; `module` is the name under which package.json installs it.
 *
 * - `patient`: has no timeout for replies, until 1.1.
 * - `flushesLate`: keeps events that were pushed before it had joined, and sends them with its next join, until 1.1.
 * - `staysAway`: reconnects only after a close event whose code is not 1000, from 1.4.0 to 1.4.2; its own heartbeat timer
 *   closes with 1000, and its long-poll closes without an event.
 * - `rejoinsDenied`: retries a join that was refused, from 1.4.3.
 * - `leavesDuplicates`: a second channel object of a topic makes the first one leave, from 1.5.
 * - `presence`: `functions` on a state that the page keeps, or `objects` that keep the state.
 * - `bytes`: reads and writes binary frames, from 1.5.7.
 * - `posts`: also sends binary payloads over long-poll, and sends its messages there in batches, from 1.7.
 * - `namesInUtf8`: measures the names in a binary frame in bytes of UTF-8, from 1.8.7.
 * - `fallsBack`: has `longPollFallbackMs`, from 1.7.11.
 */
export const GENERATIONS = [
  { label: "phoenix-js 1.0.3", module: "phoenix-js", vsn: "1.0.0", patient: true, flushesLate: true },
  { label: "phoenix 1.2.1", module: "phoenix-1.2", vsn: "1.0.0", presence: "functions" },
  { label: "phoenix 1.3.5", module: "phoenix-1.3", vsn: "2.0.0", presence: "functions" },
  { label: "phoenix 1.4.0", module: "phoenix-1.4.0", vsn: "2.0.0", presence: "objects", staysAway: true },
  { label: "phoenix 1.4.18", module: "phoenix-1.4", vsn: "2.0.0", presence: "objects", rejoinsDenied: true },
  { label: "phoenix 1.5.14", module: "phoenix-1.5", ...modern({ bytes: true }) },
  { label: "phoenix 1.6.16", module: "phoenix-1.6", ...modern({ bytes: true }) },
  { label: "phoenix 1.7.21", module: "phoenix-1.7", ...modern({ bytes: true, posts: true, fallsBack: true }) },
  { label: "phoenix 1.8.16", module: "phoenix", ...modern({ bytes: true, posts: true, namesInUtf8: true, fallsBack: true }) },
]

export const OLDEST = GENERATIONS[0]
export const LATEST = GENERATIONS[GENERATIONS.length - 1]

/**
 * The reason why a client cannot pass a step that ends its session, or a falsy value. It is a fault of phoenix.js:
 * these versions never reopen a long-poll session that has ended.
 */
export const STAYS_AWAY = ({ staysAway, transport }) =>
  staysAway && transport === "long-poll" && "it reconnects only after a close event, and its long-poll has none"

/** The transports of a client. */
export const TRANSPORTS = ["WebSocket", "long-poll"]

/** Each of these generations over each transport. */
export function overEachTransport(generations) {
  return TRANSPORTS.flatMap(transport => generations.map(generation => ({ ...generation, transport })))
}

/** The properties that all generations have had since 1.5. */
function modern(more) {
  return { vsn: "2.0.0", presence: "objects", rejoinsDenied: true, leavesDuplicates: true, ...more }
}
