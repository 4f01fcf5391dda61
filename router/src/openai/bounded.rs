//! JSON lists and objects of bounded length. Reading stops at the first entry too many, so that a body of millions of tiny
//! entries costs no more than its own bytes.

use std::fmt;
use std::marker::PhantomData;

use indexmap::IndexMap;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A list of at most `MAX` entries.
pub(super) struct List<T, const MAX: usize>(pub Vec<T>);

/// An object of at most `MAX` names, in their order; of a name that comes twice the last value counts.
pub(super) struct Object<T, const MAX: usize>(pub IndexMap<String, T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if list.len() == MAX {
                        return Err(A::Error::custom(TooMany(MAX)));
                    }
                    list.push(entry);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Object<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
            type Value = Object<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX} fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = IndexMap::new();
                while let Some((name, value)) = entries.next_entry()? {
                    map.insert(name, value);
                    if map.len() > MAX {
                        return Err(A::Error::custom(TooMany(MAX)));
                    }
                }
                Ok(Object(map))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// A string, or a list of at most `MAX`.
pub(super) struct OneOrList<const MAX: usize>(pub Vec<String>);

impl<'de, const MAX: usize> Deserialize<'de> for OneOrList<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for Either<MAX> {
            type Value = OneOrList<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string or a list of at most {MAX}")
            }

            fn visit_str<E: Error>(self, one: &str) -> Result<Self::Value, E> {
                Ok(OneOrList(vec![one.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, entries: A) -> Result<Self::Value, A::Error> {
                let list = List::deserialize(SeqAccessDeserializer::new(entries))?;
                let List::<String, MAX>(list) = list;
                Ok(OneOrList(list))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

struct TooMany(usize);

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} entries", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_at_the_first_entry_too_many() {
        // What follows is not even JSON, and never looked at.
        let long = |open: char, entry: &str| format!("{open}{}, !", [entry; 3].join(", "));
        let list = serde_json::from_str::<List<u32, 2>>(&long('[', "7")).err().unwrap();
        assert!(list.to_string().contains("more than 2 entries"), "{list}");
        let object = r#"{"a": 1, "a": 2, "b": 3, "c": 4, !"#;
        let object = serde_json::from_str::<Object<u32, 2>>(object).err().unwrap();
        assert!(object.to_string().contains("more than 2 entries"), "{object}");
    }

    #[test]
    fn what_is_within_the_bound_is_read() {
        assert_eq!(serde_json::from_str::<List<u32, 2>>("[1, 2]").unwrap().0, [1, 2]);
        let object = serde_json::from_str::<Object<u32, 2>>(r#"{"a": 1, "b": 3, "a": 2}"#).unwrap().0;
        assert_eq!(object, IndexMap::from([("a".to_owned(), 2), ("b".to_owned(), 3)]));
    }
}
