//! Ids of runs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::Values;
use plimsoll_model::RunId;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(id) = text.parse::<RunId>() {
        assert_eq!(id.as_str(), text);
        // Safe as the name of a file or a group.
        assert!(text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()));
        is_read_back(id);
    }
    let mut values = Values::new(data);
    let (at, later, random, other): (u64, u64, u32, u32) = (values.take(), values.take(), values.take(), values.take());
    let (id, second) = (RunId::new(at, random), RunId::new(later, other));
    is_read_back(id);
    let time = |unix_ms: u64| unix_ms & ((1 << 48) - 1);
    assert_eq!((time(at), random).cmp(&(time(later), other)), id.cmp(&second), "{id} {second}");
});

fn is_read_back(id: RunId) {
    assert_eq!(id.to_string().parse(), Ok(id));
    let json = serde_json::to_string(&id).expect("a word");
    assert_eq!(json, format!("\"{id}\""));
    assert_eq!(serde_json::from_str::<RunId>(&json).ok(), Some(id));
}
