//! Somebody who loads an object without polity: libbpf and nothing else.

use libbpf_rs::{Link, MapCore, MapType, Object, ObjectBuilder};

/// An object in the kernel that polity knows nothing of.
#[must_use = "it goes with the value"]
pub struct Stranger {
    _links: Vec<Link>,
    _object: Object,
}

impl Stranger {
    /// Loads the object and attaches its struct_ops maps.
    pub fn load(object: &str) -> Self {
        let mut object = ObjectBuilder::default().open_file(object).unwrap().load().unwrap();
        let mut links = Vec::new();
        for mut map in object.maps_mut().filter(|m| m.map_type() == MapType::StructOps) {
            links.push(map.attach_struct_ops().unwrap());
        }
        assert!(!links.is_empty());
        Self { _links: links, _object: object }
    }
}
