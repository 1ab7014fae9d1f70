// Waiting with a deadline. Playwright's waits for pages use the same deadline.

/** The time after which a wait fails, in milliseconds. */
export const DEADLINE_MS = 30_000

/** Settles like `promise`, or fails if the deadline passes first; the error then names `what` was awaited. */
export async function within(promise, what, deadlineMs = DEADLINE_MS) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${deadlineMs} ms for ${what}`)), deadlineMs)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Calls `check` repeatedly until it returns a truthy value, and returns that value; fails if the deadline passes first.
 */
export async function eventually(check, what, deadlineMs = DEADLINE_MS) {
  const end = Date.now() + deadlineMs
  for (;;) {
    const answer = await check()
    if (answer) return answer
    if (Date.now() > end) throw new Error(`waited ${deadlineMs} ms for ${what}`)
    await new Promise(resolve => setTimeout(resolve, 25))
  }
}

/** The items that have arrived and were not taken yet, in their order of arrival. */
export class Inbox {
  constructor(name) {
    this.name = name
    this.arrived = []
    this.waiting = []
    this.times = [] // when each item arrived, in milliseconds
  }

  put(item) {
    this.times.push(performance.now())
    const taker = this.waiting.shift()
    if (taker) taker(item)
    else this.arrived.push(item)
  }

  /** The next item, which has arrived already or is still to arrive. */
  take(what = "the next item", deadlineMs = DEADLINE_MS) {
    if (this.arrived.length > 0) return Promise.resolve(this.arrived.shift())
    const next = new Promise(resolve => this.waiting.push(resolve))
    return within(next, `${what} at ${this.name}`, deadlineMs)
  }

  get isEmpty() {
    return this.arrived.length === 0
  }

  /** Takes all items that have arrived and were not taken yet. */
  rest() {
    return this.arrived.splice(0)
  }
}
