//! Events: the records of a policy's ring buffer `events`, printed through BTF.

use std::time::Duration;

use libbpf_rs::{MapHandle, RingBufferBuilder};
use serde_json::{Map, Value};

use crate::error::Result;
use crate::layout::Layout;
use crate::live::Live;
use crate::shape::Shape;
use crate::time;

/// How a policy's records become JSON.
#[derive(Clone)]
pub struct Decoder {
    policy: String,
    layout: Layout,
}

impl Decoder {
    /// The decoder for `live`'s events, where it has any.
    pub fn new(live: &Live, shape: &Shape) -> Option<Self> {
        Some(Self { policy: live.meta.policy.clone(), layout: shape.event.clone()? })
    }

    /// The policy whose records they are.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// One record as an object with `time`, `policy`, `event` and the record's own fields.
    pub fn json(&self, record: &[u8]) -> Value {
        let mut fields = match self.layout.json(record) {
            Value::Object(fields) => fields,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        let time = match fields.remove("ktime").and_then(|t| t.as_u64()) {
            Some(boot_ns) => time::from_boot(boot_ns),
            None => time::now(),
        };
        let event = fields.remove("event").unwrap_or_else(|| "event".into());
        let mut object = Map::new();
        object.insert("time".into(), time.into());
        object.insert("policy".into(), self.policy.clone().into());
        object.insert("event".into(), event);
        object.extend(fields);
        Value::Object(object)
    }
}

/// Reads the ring buffer `map` until `each` says false; `each` also gets `None` whenever nothing
/// came for a while.
///
/// # Errors
/// The buffer can't be mapped.
pub fn follow(
    map: &MapHandle,
    decoder: &Decoder,
    mut each: impl FnMut(Option<Value>) -> bool,
) -> Result<()> {
    let queue = std::cell::RefCell::new(Vec::new());
    let mut builder = RingBufferBuilder::new();
    builder.add(map, |record: &[u8]| {
        queue.borrow_mut().push(decoder.json(record));
        0
    })?;
    let ring = builder.build()?;
    loop {
        match ring.poll(Duration::from_millis(200)) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        for event in queue.take() {
            if !each(Some(event)) {
                return Ok(());
            }
        }
        if !each(None) {
            return Ok(());
        }
    }
}
