// Waiting with a deadline: every wait in these tests goes through here.

/** How long anything may take before the test says what it was waiting for, in milliseconds. */
export const DEADLINE_MS = 30_000

/** Settles like `promise`, or fails naming `what` when the deadline passes first. */
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

/** Asks `check` again and again until it answers something truthy, and returns that. */
export async function eventually(check, what, deadlineMs = DEADLINE_MS) {
  const end = Date.now() + deadlineMs
  for (;;) {
    const answer = await check()
    if (answer) return answer
    if (Date.now() > end) throw new Error(`waited ${deadlineMs} ms for ${what}`)
    await new Promise(resolve => setTimeout(resolve, 25))
  }
}

/** What arrived and was not yet taken, in order of arrival. */
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

  /** The next item, arrived already or still to come. */
  take(what = "the next item", deadlineMs = DEADLINE_MS) {
    if (this.arrived.length > 0) return Promise.resolve(this.arrived.shift())
    const next = new Promise(resolve => this.waiting.push(resolve))
    return within(next, `${what} at ${this.name}`, deadlineMs)
  }

  get isEmpty() {
    return this.arrived.length === 0
  }

  /** Everything that arrived and nobody took. */
  rest() {
    return this.arrived.splice(0)
  }
}
