//! Certificates: read back from a database or a report that anybody may have written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_model::Certificate;

fuzz_target!(|data: &[u8]| {
    let Ok(certificate) = serde_json::from_slice::<Certificate>(data) else { return };
    let text = serde_json::to_string(&certificate).expect("what was read can be written");
    assert_eq!(serde_json::from_str::<Certificate>(&text).ok().as_ref(), Some(&certificate), "{text}");
});
