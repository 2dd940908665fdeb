/** @file
  The machine's devices, as data alone: there is no method here, so the kernel's interpreter runs nothing.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

DefinitionBlock ("Dsdt.aml", "DSDT", 2, "OPNRLY", "RELAY   ", 1) {
  // Power off. Source: QEMU, hw/acpi/core.c, acpi_pm1_cnt_write.
  Name (\_S5, Package () { 0, 0, 0, 0 })

  Scope (\_SB) {
    Device (PCI0) {
      Name (_HID, EisaId ("PNP0A08"))
      Name (_CID, EisaId ("PNP0A03"))
      Name (_UID, 0)
      Name (_SEG, 0)
      Name (_BBN, 0)
      Name (_CRS, ResourceTemplate () {
        WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
        IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
        WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
        WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
        // Between the memory below 4 GiB, which ends at 0xB0000000 at most, and the configuration space.
        DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                     0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
      })
    }
  }
}
