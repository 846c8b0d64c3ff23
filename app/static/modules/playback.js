// Two films played as one: the first leads, the second follows to the frame.

const SEEK_BEYOND_SECONDS = 0.3;
const NUDGE_BEYOND_SECONDS = 0.012;
const STRONGEST_NUDGE = 0.25;

export class Playback {
  #leader;
  #follower;
  #offset;
  #onTime;
  #closed = false;

  /** `offsetSeconds`: what the leader shows at 0 is at that time in the follower. `follower` may be null. */
  constructor(leader, follower, offsetSeconds, onTime) {
    this.#leader = leader;
    this.#follower = follower;
    this.#offset = offsetSeconds;
    this.#onTime = onTime;
    if (follower) follower.muted = true;
    leader.addEventListener("playing", () => this.#follower?.play().catch(() => {}));
    for (const name of ["pause", "waiting", "ended", "seeked"]) leader.addEventListener(name, () => this.#settle());
    for (const name of ["timeupdate", "durationchange", "progress", "play", "pause", "seeked"]) leader.addEventListener(name, () => this.#tell());
    if (follower && "requestVideoFrameCallback" in leader) this.#watchFrames();
  }

  get isPlaying() {
    return !this.#leader.paused && !this.#leader.ended;
  }

  get seconds() {
    return this.#leader.currentTime;
  }

  toggle() {
    if (this.isPlaying) this.#leader.pause();
    else this.#leader.play().catch(() => {});
  }

  seek(seconds) {
    this.#leader.currentTime = seconds;
    if (this.#follower) this.#follower.currentTime = seconds + this.#offset;
  }

  close() {
    this.#closed = true;
    this.#leader.pause();
    this.#follower?.pause();
  }

  #settle() {
    if (!this.#follower) return;
    if (!this.isPlaying || this.#leader.readyState < HTMLMediaElement.HAVE_FUTURE_DATA) this.#follower.pause();
    if (!this.isPlaying && Math.abs(this.#drift(this.#leader.currentTime)) > 1e-4) {
      this.#follower.currentTime = this.#leader.currentTime + this.#offset;
    }
  }

  /** At every frame that the leader shows. */
  #watchFrames() {
    this.#leader.requestVideoFrameCallback((_, { mediaTime }) => {
      if (this.#closed) return;
      if (this.isPlaying) this.#correct(mediaTime);
      this.#watchFrames();
    });
  }

  #correct(leaderSeconds) {
    const drift = this.#drift(leaderSeconds);
    if (Math.abs(drift) > SEEK_BEYOND_SECONDS) this.#follower.currentTime = this.#leader.currentTime + this.#offset;
    const nudge = Math.abs(drift) > NUDGE_BEYOND_SECONDS ? Math.max(-STRONGEST_NUDGE, Math.min(STRONGEST_NUDGE, -drift * 2)) : 0;
    this.#follower.playbackRate = this.#leader.playbackRate * (1 + nudge);
  }

  /** By how much the follower is ahead. */
  #drift(leaderSeconds) {
    return this.#follower.currentTime - this.#offset - leaderSeconds;
  }

  #tell() {
    if (!this.#closed) this.#onTime();
  }
}
