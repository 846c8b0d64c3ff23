// Every error in two sentences: what happened, in the service's own words, and what to do about it.

const TODO = {
  // The source
  empty_file: "Export or copy the file again; nothing was in it.",
  not_a_video: "Open the file in a player. If it plays there, convert it to MP4 or Matroska; if not, find another copy.",
  no_video_stream: "Choose a file with a picture: this one has sound, or something else, only.",
  no_frames: "Look whether the file plays from its beginning; if not, find another copy.",
  playlist_refused: "Choose the video itself instead of the list that leads to it.",
  unsupported_codec: "Convert the file to H.264, for example with HandBrake, and send that.",
  unsupported_source: "Convert the file to MP4 or Matroska and send that.",
  corrupt_frame: "Find an undamaged copy; or start it again with “If a frame is damaged: go on”, under More choices.",
  bad_timestamps: "Copy the file into another container, for example MP4 to Matroska, and send that.",
  limit_exceeded: "Cut the video into shorter parts, or make it smaller; or ask the operator to raise the limit.",
  source_refused: "Send the file itself instead of its address.",
  source_unreachable: "Look whether the address still works, or send the file itself.",
  source_too_demanding: "Convert the file to H.264 and send that.",
  decoder_crashed: "Convert the file to H.264 and send that; this one cannot be read safely.",
  // What was asked for
  unsupported_output: "Choose another format or file type, or leave both on automatic.",
  would_lose: "Choose the file type Matroska, which holds nearly everything; or allow it, under More choices.",
  invalid_option: "Look at More choices again, and leave out what you are not sure of.",
  invalid_request: "Look at the choices again, and leave out what you are not sure of.",
  unknown_preset: "Choose other networks.",
  weights_missing: "Choose other networks, or ask the operator to bring these weights.",
  weights_damaged: "Choose other networks, and tell the operator.",
  device_unavailable: "Tell the operator: the graphics processor that was asked for is not there.",
  // The service
  out_of_disk: "Delete videos that you no longer need, or try again later.",
  out_of_memory: "Try again; if it happens again, the video is too large for this machine.",
  verification_failed: "Try again. What was made is not handed out, as a check of it failed.",
  worker_lost: "Try again: what was finished is kept, and it goes on from there.",
  cage_unavailable: "Tell the operator: videos cannot be opened safely on this machine.",
  internal: "Try again; if it happens again, tell the operator.",
  // The API's own
  unreachable: "Look at your connection. Whatever the service has accepted goes on there.",
  unauthorized: "Sign in again.",
  job_not_found: "It has been deleted. Reload the page.",
  upload_not_found: "Choose the file again.",
  upload_too_large: "Cut the video into parts, or ask the operator to raise the limit.",
  storage_of_key_full: "Delete videos that you no longer need.",
  too_many_jobs: "Try again in a while.",
  too_many_jobs_of_key: "Wait until some of your videos are done.",
  result_expired: "Send the video again.",
  job_ended: "It has ended by now: compare the result itself.",
  no_preview: "Ask for it again.",
  preview_failed: "Choose another place, or wait for the video itself.",
  not_streamable: "Wait until it is done, then download it.",
};

/** `problem`: a `code` and a `message`. */
export function advice(problem) {
  const todo = TODO[problem.code] ?? (problem.status >= 500 ? "Try again in a moment." : null);
  const quoted = problem.status >= 500 && problem.requestId ? ` If you report it, quote ${problem.requestId}.` : "";
  return { what: sentence(problem.message), todo: todo ? todo + quoted : null };
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
